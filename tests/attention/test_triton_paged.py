"""The Triton backend against the definition, its kernels replaced by their twins in torch."""

from __future__ import annotations

import pytest
import torch
from paged_batch import make_pool, make_step, write_and_attend
from reference_attention import reference_paged

from vlmbatch.attention.base import AttentionMetadata, AttentionSpec, SampledQueries
from vlmbatch.attention.triton_paged import TritonBackend

STEPS = {
    "decodes": [(1, 5), (1, 16), (1, 257), (1, 300), (1, 1)],
    "prefill": [(7, 7), (33, 33), (256, 256)],
    "mixed": [(1, 90), (1, 3), (1, 290), (20, 20), (9, 260), (2, 31)],
}
SPECS = {
    "gqa": AttentionSpec(6, 2, 8, 0.3),
    "window": AttentionSpec(4, 2, 8, 0.3, sliding_window=19),
    "softcap": AttentionSpec(4, 2, 8, 0.9, softcap=1.5),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("lengths", STEPS.values(), ids=STEPS)
def test_matches_reference(lengths: list[tuple[int, int]], spec: AttentionSpec) -> None:
    backend = TritonBackend()
    sizes = backend.block_size, backend.granule
    generator = torch.Generator().manual_seed(len(lengths))
    step = make_step(lengths, spec, *sizes, generator=generator)
    expected, actual = (make_pool(step, spec) for _ in range(2))
    inputs = (step.query, step.key, step.value)
    want = reference_paged(*inputs, expected, step.metadata, spec, *sizes)
    got = write_and_attend(backend, *inputs, actual, step.metadata, spec)
    torch.testing.assert_close(got, want)
    assert torch.equal(actual.key, expected.key)
    assert torch.equal(actual.value, expected.value)


@pytest.mark.parametrize("sampling", [[2, 0], []], ids=["some", "none"])
def test_only_sampled_queries_attend(sampling: list[int]) -> None:
    """The last query of each such sequence, as it attends when all do."""
    backend, spec = TritonBackend(), SPECS["gqa"]
    generator = torch.Generator().manual_seed(1)
    lengths = [(1, 90), (20, 20), (9, 260)]
    step = make_step(lengths, spec, backend.block_size, backend.granule, generator=generator)
    pool = make_pool(step, spec)
    every = write_and_attend(backend, step.query, step.key, step.value, pool, step.metadata, spec)
    sampled = _sampled(step.metadata, sampling)
    got = backend.attend(step.query, pool, step.metadata, spec, sampled)
    torch.testing.assert_close(got, every[sampled.tokens])


def _sampled(metadata: AttentionMetadata, sequences: list[int]) -> SampledQueries:
    ends = [metadata.seqlens_k_host[i] for i in sequences]
    alone = AttentionMetadata(
        cu_seqlens_q=torch.arange(len(ends) + 1, dtype=torch.int32),
        seqlens_k=torch.tensor(ends, dtype=torch.int32),
        block_table=metadata.block_table[sequences],
        slot_mapping=metadata.slot_mapping[:0],
        query_lens=[1] * len(ends),
        seqlens_k_host=ends,
        num_decodes=len(ends),
        max_seqlen_q=1,
        max_seqlen_k=max(ends, default=0),
    )
    return SampledQueries(metadata.cu_seqlens_q[1:].long()[sequences] - 1, alone)
