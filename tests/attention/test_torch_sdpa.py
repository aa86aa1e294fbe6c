"""The torch backend against the definition, on random ragged steps over shuffled pages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paged_batch import make_pool, make_step, write_and_attend
from reference_attention import reference_dense, reference_paged

from vlmbatch.attention.base import AttentionSpec
from vlmbatch.attention.torch_sdpa import TorchSdpaBackend

STEPS = {
    "decodes": [(1, 5), (1, 16), (1, 17), (1, 100), (1, 1)],
    "prefill": [(7, 7), (33, 33), (16, 16)],
    "chunks": [(5, 40), (16, 48), (3, 3), (64, 113)],
    "mixed": [(1, 90), (1, 3), (1, 44), (20, 20), (9, 60), (2, 31)],
    "one": [(48, 48)],
}
SPECS = {
    "plain": AttentionSpec(4, 4, 8, 0.3),
    "gqa": AttentionSpec(6, 2, 8, 0.3),
    "mqa": AttentionSpec(5, 1, 24, 0.2),
    "window": AttentionSpec(4, 2, 8, 0.3, sliding_window=19),
    "window-1": AttentionSpec(4, 2, 8, 0.3, sliding_window=1),
    "softcap": AttentionSpec(4, 2, 8, 0.9, softcap=1.5),
    "bidirectional": AttentionSpec(4, 2, 8, 0.3, causal=False),
}


@pytest.mark.parametrize("granules", [(16, 16), (64, 16), (8, 8), (16, 1)], ids=str)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("lengths", STEPS.values(), ids=STEPS)
def test_matches_reference(
    lengths: list[tuple[int, int]], spec: AttentionSpec, granules: tuple[int, int]
) -> None:
    _check(lengths, spec, *granules)


@pytest.mark.parametrize("limit", ["_MAX_MASK_ELEMENTS", "_FREE_WASTE", "_MAX_KEYS", "_TILE_ROWS"])
@pytest.mark.parametrize("spec", [SPECS["gqa"], SPECS["window"]], ids=["gqa", "window"])
def test_many_blocks_match_reference(
    monkeypatch: pytest.MonkeyPatch, limit: str, spec: AttentionSpec
) -> None:
    """Tiny limits split queries into tiles and tiles into blocks, out of their order."""
    step = STEPS["mixed"] + STEPS["chunks"]
    few = _check(step, spec, 16, 16)
    monkeypatch.setattr("vlmbatch.attention.sdpa_plan._FREE_WASTE", 0)
    monkeypatch.setattr(f"vlmbatch.attention.sdpa_plan.{limit}", 9)
    assert _check(step, spec, 16, 16) > 2 * few


def test_long_beside_short_is_not_padded_to_long() -> None:
    lengths = [(1, 2000)] + [(1, 20)] * 40 + [(1, 1990)]
    assert _check(lengths, SPECS["gqa"], 16, 16) == 2


def test_like_lengths_make_one_block() -> None:
    assert _check([(1, 80 + i) for i in range(30)], SPECS["gqa"], 16, 16) == 1


def test_page_shared_within_a_step() -> None:
    """A sequence reads the prefix that another one writes in the same step."""
    spec = SPECS["gqa"]
    generator = torch.Generator().manual_seed(3)
    step = make_step([(32, 32), (8, 40)], spec, generator=generator)
    step.metadata.block_table[1, :2] = step.metadata.block_table[0, :2]
    expected, actual = (make_pool(step, spec) for _ in range(2))
    inputs = (step.query, step.key, step.value)
    want = reference_paged(*inputs, expected, step.metadata, spec, 16, 16)
    got = write_and_attend(TorchSdpaBackend(), *inputs, actual, step.metadata, spec)
    torch.testing.assert_close(got, want)


def test_other_tokens_do_not_change_a_sequence() -> None:
    spec = SPECS["gqa"]
    generator = torch.Generator().manual_seed(4)
    step = make_step([(1, 30), (1, 300), (12, 40)], spec, generator=generator)
    backend = TorchSdpaBackend()
    before = write_and_attend(
        backend, step.query, step.key, step.value, make_pool(step, spec), step.metadata, spec
    )
    for tensor in (step.query, step.key, step.value):
        tensor[1] = 50.0
    after = write_and_attend(
        backend, step.query, step.key, step.value, make_pool(step, spec), step.metadata, spec
    )
    assert not torch.equal(before[1], after[1])
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2:], after[2:])


def test_plan_is_made_once_a_step_and_spec() -> None:
    generator = torch.Generator().manual_seed(5)
    wide, narrow = SPECS["gqa"], AttentionSpec(6, 2, 8, 0.3, sliding_window=4)
    step = make_step([(1, 30), (12, 40)], wide, generator=generator)
    pool = make_pool(step, wide)
    backend = TorchSdpaBackend()
    for spec in (wide, narrow, wide):
        write_and_attend(backend, step.query, step.key, step.value, pool, step.metadata, spec)
    assert set(step.metadata.plans) == {wide, narrow}
    plan = step.metadata.plans[wide]
    write_and_attend(backend, step.query, step.key, step.value, pool, step.metadata, wide)
    assert step.metadata.plans[wide] is plan


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 20), max_size=6).filter(any), causal=st.booleans())
@example(lengths=[13, 13, 13], causal=False)
@example(lengths=[64, 64, 8, 64, 1], causal=True)
def test_sequences_without_a_cache_attend_within_themselves(
    lengths: list[int], causal: bool
) -> None:
    spec = AttentionSpec(4, 2, 8, 0.3, causal=causal)
    generator = torch.Generator().manual_seed(6)
    query = torch.randn(sum(lengths), 4, 8, generator=generator)
    key, value = torch.randn(2, sum(lengths), 2, 8, generator=generator)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    got = TorchSdpaBackend().varlen(query, key, value, cu_seqlens, max(lengths), spec)
    parts = [torch.split(tensor, lengths) for tensor in (query, key, value)]
    want = [reference_dense(*each, spec) for each in zip(parts[0], parts[1], parts[2], strict=True)]
    torch.testing.assert_close(got, torch.cat(want))


def _check(
    lengths: list[tuple[int, int]], spec: AttentionSpec, block_size: int, granule: int
) -> int:
    """Compare one random step with the reference; return the number of blocks it took.

    What no sequence holds is not a number, as another row may have left it.
    """
    generator = torch.Generator().manual_seed(len(lengths))
    step = make_step(lengths, spec, block_size, granule, generator=generator)
    held = torch.zeros(step.pool.shape[1], dtype=torch.bool)
    for table, (_, total) in zip(step.metadata.block_table, lengths, strict=True):
        at = torch.arange(total)
        held[table[at // block_size] * granule + at % block_size] = True
    step.pool[:, ~held] = torch.nan
    expected, actual = (make_pool(step, spec) for _ in range(2))
    inputs = (step.query, step.key, step.value)
    want = reference_paged(*inputs, expected, step.metadata, spec, block_size, granule)
    backend = TorchSdpaBackend(block_size, granule)
    got = write_and_attend(backend, *inputs, actual, step.metadata, spec)
    torch.testing.assert_close(got, want)
    for ours, theirs in ((actual.key, expected.key), (actual.value, expected.value)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    return len(step.metadata.plans[spec])
