"""The Triton kernels on the GPU: against float32, and where the models and the sampler use them."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import (
    CASES,
    check,
    check_greedy_tokens,
    check_mask_tokens,
    check_normalize_patches,
    check_project_qkv,
    check_resample,
    check_silu_gated_linear,
)
from paged_batch import make_step, on_device, write_and_attend
from vlmbatch_kernels.activation import silu_and_mul
from vlmbatch_kernels.gated_linear import silu_gated_linear
from vlmbatch_kernels.gelu_linear import gelu_linear
from vlmbatch_kernels.linear import linear
from vlmbatch_kernels.rotary import apply_rotary, rotary_and_cache
from vlmbatch_kernels.sampling import sample_tokens

from vlmbatch.attention import make_backend
from vlmbatch.attention.base import AttentionSpec, LayerKVCache

DTYPES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_error_is_at_most_twice_torchs(name: str, dtype: torch.dtype) -> None:
    check(name, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("patch_size", [3, 14, 16])
def test_images(patch_size: int, dtype: torch.dtype) -> None:
    check_normalize_patches((2, 61, 336), patch_size, dtype, "cuda")


needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="its tiles need a Hopper GPU's shared memory",
)


@needs_hopper
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(1, 64, 2, 2), (113, 72, 28, 4), (1537, 520, 6, 2)])
def test_project_qkv(
    sizes: tuple[int, int, int, int], dtype: torch.dtype, bias: bool, norms: bool
) -> None:
    check_project_qkv(sizes, 128, dtype, "cuda", bias, norms)


@needs_hopper
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 64, 1032), (113, 72, 200), (1537, 520, 1032), (4100, 256, 128)]
)
def test_silu_gated_linear(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check_silu_gated_linear(shape, dtype, "cuda")


@needs_hopper
def test_silu_gated_linear_is_fused_for_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmbatch_kernels import gated_linear_triton

    calls = []

    def counted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return fused(x, weight)

    fused = gated_linear_triton.fused
    monkeypatch.setattr(gated_linear_triton, "fused", counted)
    x = torch.randn(1536, 512, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(2048, 512, device="cuda", dtype=torch.bfloat16)
    plain = silu_and_mul(linear(x, weight))
    got = silu_gated_linear(x, weight)
    assert (got.float() - plain.float()).norm() <= 1e-3 * plain.float().norm()
    assert calls == [1536]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(113, 72, 200), (3, 577, 1152, 4304)], ids=str)
def test_gelu_linear(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    *rows, depth, size = shape
    x, weight, bias = torch.randn(*rows, depth), torch.randn(size, depth) / 8, torch.randn(size)
    x, weight, bias = (tensor.to("cuda", dtype) for tensor in (x, weight, bias))
    wide = torch.nn.functional.linear(x.float(), weight.float(), bias.float())
    exact = torch.nn.functional.gelu(wide, approximate="tanh")
    plain = torch.nn.functional.gelu(linear(x, weight, bias), approximate="tanh")
    got = gelu_linear(x, weight, bias)
    assert got.dtype == dtype and got.shape == plain.shape
    assert (got - exact).norm() <= 2 * (plain - exact).norm()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32], ids=str)
@pytest.mark.parametrize("vocab", [113, 4099, 32064])
def test_greedy_tokens(vocab: int, dtype: torch.dtype) -> None:
    check_greedy_tokens(7, vocab, dtype, "cuda")


@pytest.mark.parametrize("vocab", [113, 32064])
def test_mask_tokens(vocab: int) -> None:
    check_mask_tokens(7, vocab, torch.bfloat16, "cuda")


def test_resample() -> None:
    shapes = [(301, 970, 333, 19), (448, 97, 203, 7), (97, 448, 33, 15), (1, 5, 1, 5)]
    shapes += [(301, 968, 333, 20), (448, 97, 203, 7), (97, 4032, 336, 52)]
    check_resample(shapes, "cuda")


@pytest.mark.parametrize("backend_name", ["flash-attn", "triton", "torch"])
def test_backends_write_and_attend_alike_from_a_fused_projection(backend_name: str) -> None:
    spec = AttentionSpec(28, 4, 128, 128**-0.5)
    backend = make_backend(backend_name, "cuda")
    generator = torch.Generator()
    generator.seed()
    lengths = [(1, 90), (1, 744), (20, 20), (9, 260)]
    step = make_step(lengths, spec, backend.block_size, backend.granule, generator=generator)
    metadata = on_device(step.metadata, "cuda")
    heads = [step.query, step.key, step.value]
    query, key, value = (x.to("cuda", torch.bfloat16) for x in heads)
    angles = torch.rand(len(query), 1, 64, generator=generator).to("cuda") * 6
    cos = torch.cat([angles.cos()] * 2, -1).bfloat16()
    sin = torch.cat([-angles.sin(), angles.sin()], -1).bfloat16()
    slack = torch.zeros(2, backend.block_size, 4, 128)
    pools = [torch.cat([step.pool, slack], 1).to("cuda", torch.bfloat16) for _ in range(2)]
    want = write_and_attend(
        backend,
        apply_rotary(query, cos, sin),
        apply_rotary(key, cos, sin),
        value,
        LayerKVCache(*pools[0]),
        metadata,
        spec,
    )
    qkv = torch.cat([query, key, value], 1)
    rotated = rotary_and_cache(qkv, cos, sin, *pools[1], metadata.slot_mapping)
    got = backend.attend(rotated, LayerKVCache(*pools[1]), metadata, spec)
    for ours, theirs in ((got, want), (pools[1], pools[0])):
        assert (ours.float() - theirs.float()).norm() <= 1e-2 * theirs.float().norm()
    unwritten = torch.ones(pools[0].shape[1], dtype=torch.bool)
    unwritten[step.metadata.slot_mapping] = False
    assert torch.equal(pools[0][:, unwritten.cuda()], pools[1][:, unwritten.cuda()])


def test_sampling_never_waits_for_the_device() -> None:
    logits = torch.randn(6, 32064, device="cuda")
    rows = (
        torch.tensor([0.0, 1.0, 0.7, 1.3, 0.0, 1.0]),
        torch.tensor([0, 0, 50, 0, 3, 7]),
        torch.tensor([1.0, 1.0, 0.9, 0.5, 0.9, 1.0]),
        torch.arange(6),
        torch.arange(6) * 100,
    )
    want = sample_tokens(logits.cpu(), *rows)
    sample_tokens(logits, *rows)  # kernels are compiled and loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        tokens = sample_tokens(logits, *rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    greedy = rows[0] == 0
    assert torch.equal(tokens.cpu()[greedy], want[greedy])
    assert ((tokens >= 0) & (tokens < 32064)).all()
