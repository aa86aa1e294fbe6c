"""What attends over the paged pool on a GPU, against the definition in float32."""

from __future__ import annotations

import pytest
import torch
from paged_batch import Step, make_step, on_device, write_and_attend
from reference_attention import reference_dense, reference_paged

from vlmbatch.attention import make_backend
from vlmbatch.attention.base import AttentionSpec, LayerKVCache

STEPS = {
    "decodes": [(1, 5), (1, 16), (1, 257), (1, 700), (1, 1), (1, 512)],
    "prefill": [(7, 7), (333, 333), (256, 256), (577, 577)],
    "chunks": [(5, 400), (16, 48), (3, 3), (113, 203)],
    "mixed": [(1, 90), (1, 300), (1, 744), (20, 20), (9, 260), (2, 31)],
    "many": [(1, 40 + 3 * i) for i in range(300)],
}
SPECS = {
    "mha-128": AttentionSpec(8, 8, 128, 128**-0.5),
    "gqa-128": AttentionSpec(28, 4, 128, 128**-0.5),
    "gqa-64": AttentionSpec(14, 2, 64, 0.125),
    "window": AttentionSpec(8, 2, 128, 128**-0.5, sliding_window=37),
    "softcap": AttentionSpec(8, 4, 64, 0.2, softcap=5.0),
}


BACKENDS = ["flash-attn", "triton"]


def _seed() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator


def _pool(step: Step, *dtypes: torch.dtype) -> LayerKVCache:
    """The step's pool, rounded to each of ``dtypes`` in turn; what is behind its end is NaN."""
    slack = torch.full((2, 256, *step.pool.shape[2:]), torch.nan)
    pool = torch.cat([step.pool, slack], dim=1).cuda()
    for dtype in dtypes:
        pool = pool.to(dtype)
    return LayerKVCache(*pool)


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("lengths", STEPS.values(), ids=STEPS)
def test_error_is_at_most_twice_that_of_rounding(
    lengths: list[tuple[int, int]], spec: AttentionSpec, backend_name: str
) -> None:
    backend = make_backend(backend_name, "cuda", torch.bfloat16)
    step = make_step(lengths, spec, backend.block_size, backend.granule, generator=_seed())
    metadata = on_device(step.metadata, "cuda")
    tensors = [t.to("cuda", torch.bfloat16) for t in (step.query, step.key, step.value)]
    exact_pool = _pool(step, torch.bfloat16, torch.float32)
    sizes = (backend.block_size, backend.granule)
    exact = reference_paged(*(t.float() for t in tensors), exact_pool, metadata, spec, *sizes)
    rounding = (exact.to(torch.bfloat16).float() - exact).norm()
    for _ in range(2):  # the flash-attn backend decodes with our kernel first, then with its own
        got = write_and_attend(backend, *tensors, _pool(step, torch.bfloat16), metadata, spec)
        # Probabilities are rounded before they meet the values: twice is what flash-attn allows.
        assert (got.float() - exact).norm() <= 2 * rounding


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("lengths", STEPS.values(), ids=STEPS)
def test_triton_computes_in_float32(lengths: list[tuple[int, int]], spec: AttentionSpec) -> None:
    backend = make_backend("triton", "cuda", torch.float32)
    step = make_step(lengths, spec, backend.block_size, backend.granule, generator=_seed())
    metadata = on_device(step.metadata, "cuda")
    tensors = [t.cuda() for t in (step.query, step.key, step.value)]
    sizes = (backend.block_size, backend.granule)
    exact = reference_paged(*tensors, _pool(step, torch.float32), metadata, spec, *sizes)
    got = write_and_attend(backend, *tensors, _pool(step, torch.float32), metadata, spec)
    assert (got - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.parametrize("size", [64, 80, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_triton_fits_every_head_size(size: int, dtype: torch.dtype) -> None:
    spec = AttentionSpec(4, 2, size, size**-0.5)
    backend = make_backend("triton", "cuda", dtype)
    step = make_step([(1, 300), (7, 40), (150, 400)], spec, 256, 16, generator=_seed())
    metadata = on_device(step.metadata, "cuda")
    tensors = [t.to("cuda", dtype) for t in (step.query, step.key, step.value)]
    exact_pool = _pool(step, dtype, torch.float32)
    exact = reference_paged(*(t.float() for t in tensors), exact_pool, metadata, spec, 256, 16)
    got = write_and_attend(backend, *tensors, _pool(step, dtype), metadata, spec)
    assert (got.float() - exact).norm() <= 5e-3 * exact.norm()


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_pages_are_shared_within_the_step_that_fills_them(backend_name: str) -> None:
    spec = SPECS["gqa-128"]
    backend = make_backend(backend_name, "cuda")
    step = make_step([(512, 512), (20, 276)], spec, 256, 16, generator=_seed())
    step.metadata.block_table[1, 0] = step.metadata.block_table[0, 0]
    metadata = on_device(step.metadata, "cuda")
    tensors = [t.to("cuda", torch.bfloat16) for t in (step.query, step.key, step.value)]
    exact_pool = _pool(step, torch.bfloat16, torch.float32)
    exact = reference_paged(*(t.float() for t in tensors), exact_pool, metadata, spec, 256, 16)
    got = write_and_attend(backend, *tensors, _pool(step, torch.bfloat16), metadata, spec)
    assert (got.float() - exact).norm() / exact.norm() < 5e-3


@pytest.mark.parametrize(
    "lengths", [[577, 577, 577], [64, 1, 700, 64, 33]], ids=["equal", "ragged"]
)
@pytest.mark.parametrize("backend_name", BACKENDS)
def test_images_attend_both_ways_within_themselves(backend_name: str, lengths: list[int]) -> None:
    spec = AttentionSpec(16, 16, 64, 0.125, causal=False)
    # As a fused projection leaves them: a token's queries, keys and values beside each other.
    qkv = torch.randn(sum(lengths), 3, 16, 64, generator=_seed()).to("cuda", torch.bfloat16)
    tensors = qkv.unbind(1)
    cu_seqlens = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    backend = make_backend(backend_name, "cuda")
    got = backend.varlen(*tensors, cu_seqlens, max(lengths), spec)
    for image, *parts in zip(*(torch.split(t, lengths) for t in (got, *tensors)), strict=True):
        exact = reference_dense(*(part.float() for part in parts), spec)
        assert (image.float() - exact).norm() / exact.norm() < 5e-3


def test_a_large_step_is_captured_after_a_small_one() -> None:
    """Nothing is left to compile or load, though the first step was small and its tables narrow."""
    spec = SPECS["mha-128"]
    backend = make_backend("flash-attn", "cuda", torch.bfloat16)
    for lengths in ([(1, 30)] * 3, [(1, 900)] * 200):
        step = make_step(lengths, spec, 256, 16, generator=_seed())
        metadata = on_device(step.metadata, "cuda")
        tensors = [t.to("cuda", torch.bfloat16) for t in (step.query, step.key, step.value)]
        pool = _pool(step, torch.bfloat16)
        if len(lengths) == 3:
            write_and_attend(backend, *tensors, pool, metadata, spec)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = write_and_attend(backend, *tensors, pool, metadata, spec)
    graph.replay()
    exact_pool = _pool(step, torch.bfloat16, torch.float32)
    exact = reference_paged(*(t.float() for t in tensors), exact_pool, metadata, spec, 256, 16)
    assert (got.float() - exact).norm() <= 5e-3 * exact.norm()
