"""Keys and values in e4m3 on a GPU: the kernels, the backends, graphs, whole engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fp8_kv_cases import (
    READS,
    ROTARY,
    attend_in_e4m3,
    check_project_qkv,
    check_read,
    check_rotary,
    quantized,
    random_scales,
)
from held_out_rows import HeldOut
from kernel_cases import triton_form
from paged_batch import make_step, on_device
from reference_attention import reference_paged
from sample_model import SampleModel, answer, make_rows
from shared_cases import make_shared
from torch import Tensor
from vlmbatch_kernels.paged_heads import read_heads
from vlmbatch_kernels.quantized_rows import E4M3
from vlmbatch_kernels.rotary import rotary_and_cache, rotary_tables
from vlmbatch_kernels.shared_decode import shared_decode

from vlmbatch.attention import make_backend
from vlmbatch.attention.base import AttentionSpec, LayerKVCache
from vlmbatch.config import EngineConfig

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="needs a GPU that converts e4m3 (Ada and later)",
)
needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="its tiles need a Hopper GPU's shared memory",
)
CUDA = torch.device("cuda")
DTYPES = [torch.bfloat16, torch.float16]
BACKENDS = ["flash-attn", "triton"]
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", READS)
def test_kernels_that_read(name: str, dtype: torch.dtype) -> None:
    check_read(name, dtype, "cuda")


@pytest.mark.parametrize("factor", [2.0**-60, 2.0**60])
@pytest.mark.parametrize("name", ["paged_attention-window", "paged_decode-gqa-24"])
def test_queries_beyond_float16(name: str, factor: float) -> None:
    check_read(name, torch.bfloat16, "cuda", factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ROTARY)
def test_rotary_kernel(name: str, dtype: torch.dtype) -> None:
    check_rotary(name, dtype, "cuda", E4M3)


@needs_hopper
@pytest.mark.parametrize(("bias", "norms"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(1, 64, 2, 2), (113, 72, 28, 4), (1537, 520, 6, 2)])
def test_fused_projection(
    sizes: tuple[int, int, int, int], dtype: torch.dtype, bias: bool, norms: bool
) -> None:
    check_project_qkv(sizes, 128, dtype, "cuda", E4M3, bias, norms)


def test_what_is_beyond_becomes_the_largest_and_no_number_stays_none() -> None:
    """And what a kernel rounds is what torch rounds, number for number."""
    qkv = torch.randn(300, 3, 64) * 2.0 ** torch.randint(-12, 12, (300, 1, 1))
    qkv[0, 2, :4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e30])
    tables = rotary_tables(torch.zeros(32), 300, torch.float32)
    caches = [torch.zeros(300, 1, 64).to(E4M3) for _ in range(4)]
    scales = torch.tensor([[0.25], [2.0]])
    inputs = qkv, *(each[:, None] for each in tables)
    rotary_and_cache(*inputs, *caches[:2], torch.arange(300), None, None, 0.0, scales)
    ours = [each.cuda() for each in caches[2:]]
    placed = [each.cuda() for each in inputs]
    form = triton_form(rotary_and_cache)
    form(*placed, *ours, torch.arange(300).cuda(), None, None, 0.0, scales.cuda())
    for got, want in zip(ours, caches[:2], strict=True):
        assert torch.equal(got.cpu().float().nan_to_num(-1), want.float().nan_to_num(-1))
    assert caches[1][0, 0, 2].float().isnan()
    assert caches[1][0, 0, :2].float().tolist() == [448, -448]


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("lengths", STEPS.values(), ids=STEPS)
def test_error_is_at_most_twice_that_of_rounding(
    lengths: list[tuple[int, int]], spec: AttentionSpec, backend_name: str
) -> None:
    backend = make_backend(backend_name, "cuda", torch.bfloat16)
    got, exact = attend_in_e4m3(backend, lengths, spec, "cuda", torch.bfloat16)
    rounding = (exact.to(torch.bfloat16).float() - exact).norm()
    assert (got.float() - exact).norm() <= 2 * rounding


@pytest.mark.parametrize("backend_name", ["triton", "torch"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("lengths", STEPS.values(), ids=STEPS)
def test_in_float32(lengths: list[tuple[int, int]], spec: AttentionSpec, backend_name: str) -> None:
    backend = make_backend(backend_name, "cuda", torch.float32)
    got, exact = attend_in_e4m3(backend, lengths, spec, "cuda", torch.float32)
    assert (got - exact).norm() <= 1e-4 * exact.norm()


@pytest.mark.parametrize("size", [64, 80, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_triton_fits_every_head_size(size: int, dtype: torch.dtype) -> None:
    spec = AttentionSpec(4, 2, size, size**-0.5)
    backend = make_backend("triton", "cuda", dtype)
    lengths = [(1, 300), (7, 40), (150, 400)]
    got, exact = attend_in_e4m3(backend, lengths, spec, "cuda", dtype)
    assert (got.float() - exact).norm() <= 5e-3 * exact.norm()


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_a_large_step_is_captured_after_a_small_one(backend_name: str) -> None:
    spec = SPECS["mha-128"]
    backend = make_backend(backend_name, "cuda", torch.bfloat16)
    attend_in_e4m3(backend, [(1, 30)] * 3, spec, "cuda", torch.bfloat16)
    step = make_step([(1, 900)] * 200, spec, 256, 16, generator=torch.Generator())
    scales = random_scales(spec.num_kv_heads)
    pool = torch.cat([step.pool, torch.zeros(2, 256, *step.pool.shape[2:])], 1)
    caches = [quantized(*each) for each in zip(pool, scales, strict=True)]
    cache = LayerKVCache(*(each.cuda() for each in (*caches, scales)))
    metadata, query = on_device(step.metadata, CUDA), step.query.to(CUDA, torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = backend.attend(query, cache, metadata, spec)
    graph.replay()
    dense = [read_heads(*each, torch.float32) for each in zip(caches, scales, strict=True)]
    written = [each[step.metadata.slot_mapping] for each in dense]
    pool = LayerKVCache(*dense)
    exact = reference_paged(query.cpu().float(), *written, pool, step.metadata, spec, 256, 16)
    assert (got.cpu().float() - exact).norm() <= 5e-3 * exact.norm()


def test_shared_prefixes_are_captured_after_others() -> None:
    heads = (4, 2, 64)
    small = in_e4m3(make_shared([300] * 5, [(0, 3, 160)], heads)(torch.Generator()))
    form = triton_form(shared_decode)
    form(*on_gpu(small))
    totals = [900 + i for i in range(200)]
    many = make_shared(totals, [(i, 10, 800) for i in range(0, 200, 10)], heads)
    inputs = in_e4m3(many(torch.Generator()))
    placed = on_gpu(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = form(*placed)
    graph.replay()
    want = shared_decode(*inputs)
    assert (got.cpu() - want).norm() <= 1e-5 * want.norm()


def in_e4m3(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs of a kernel that reads, with scales."""
    query, keys, values, *rest = inputs
    scales = random_scales(keys.shape[1])
    return query, quantized(keys, scales[0]), quantized(values, scales[1]), *rest, scales


def on_gpu(inputs: tuple[Any, ...]) -> list[Any]:
    return [each.cuda() if isinstance(each, Tensor) else each for each in inputs]


NUM_ROWS = 400
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no graphs": {"cuda_graphs": False},
    "no prefix cache": {"enable_prefix_caching": False},
    "short steps": {"max_batched_tokens": 40},
    "torch": {"attention_backend": "torch"},
}
FP8_KV = EngineConfig(device="cuda", kv_cache_dtype="fp8")
EXACT = replace(FP8_KV, dtype="float32", attention_backend="triton")
FAST = replace(FP8_KV, dtype="bfloat16", attention_backend="flash-attn")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleModel:
    return SampleModel.open(make_rows(NUM_ROWS, 7007, tmp_path_factory.mktemp("rows")))


@pytest.fixture(scope="module")
def expected(sample: SampleModel) -> list[list[int]]:
    """Those of the CPU's engine, with keys and values in e4m3 as well."""
    settings = EngineConfig(device="cpu", kv_cache_dtype="fp8")
    tokens, errors = answer(sample.engine(settings), sample.requests)
    assert not errors
    return tokens


@pytest.mark.parametrize("fast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_answers_are_the_cpus_however_the_work_is_cut_up(
    settings: dict[str, Any], fast: bool, sample: SampleModel, expected: list[list[int]]
) -> None:
    """But for near ties: a last bit may round to another number of e4m3."""
    engine = sample.engine(replace(FAST if fast else EXACT, **settings))
    tokens, errors = answer(engine, sample.requests)
    assert not errors
    same = sum(ours == theirs for ours, theirs in zip(tokens, expected, strict=True))
    assert same / NUM_ROWS >= (0.97 if fast else 0.99)


@pytest.mark.parametrize("settings", [{}, {"cuda_graphs": False}], ids=["graphs", "no graphs"])
def test_a_pool_that_runs_dry_changes_no_answer(
    settings: dict[str, Any], sample: SampleModel, expected: list[list[int]]
) -> None:
    engine = sample.engine(replace(EXACT, kv_cache_tokens=800, **settings))
    tokens, errors = answer(engine, sample.endless_requests(60))
    assert not errors
    assert engine.scheduler.num_preemptions > 0
    starts = [ours[: len(theirs)] for ours, theirs in zip(tokens, expected, strict=False)]
    assert sum(a == b for a, b in zip(starts, expected, strict=False)) >= 59


@pytest.mark.parametrize("quantize", [None, "fp8"])
@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_accuracy_is_at_most_a_point_lower(name: str, quantize: Any, tmp_path: Path) -> None:
    held_out: HeldOut = getattr(HeldOut, name)(1000, tmp_path)
    plain = held_out.accuracy(EngineConfig(device="cuda", dtype="bfloat16"))
    settings = replace(FP8_KV, dtype="bfloat16", quantize=quantize)
    assert held_out.accuracy(settings) >= plain - 0.01
