"""Keys and values in e4m3 on the CPU: the twins, and the Triton kernels in Triton's interpreter.

The interpreter does not round to e4m3 as a GPU does (see test_quantized_rows): what kernels write
there is stored as float16.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from fp8_kv_cases import (
    READS,
    check_project_qkv,
    check_read,
    check_rotary,
    quantized,
    random_scales,
)
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import _rotary
from vlmbatch_kernels.paged_heads import read_heads, write_heads
from vlmbatch_kernels.qkv_linear import project_qkv
from vlmbatch_kernels.quantized_rows import E4M3
from vlmbatch_kernels.rotary import rotary_and_cache

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs triton (pip install triton, on Linux)"
)

INTERPRETED = [
    "paged_attention-chunks-gqa-24",
    "paged_attention-softcap",
    "paged_decode-gqa-24",
    "paged_decode-pages-of-16",
    "shared_decode-gqa-24",
]


@given(st.integers(-20, 20), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_each_number_is_half_a_step_away_at_most(exponent: int, dtype: torch.dtype) -> None:
    scales = 2.0 ** torch.tensor([exponent, exponent - 3.0])
    heads = torch.randn(5, 2, 8) * scales[:, None] * 50
    heads = heads.to(dtype)
    cache = torch.zeros(9, 2, 8).to(E4M3)
    slots = torch.tensor([8, 0, 3, 4, 5])
    write_heads(cache, slots, heads, scales)
    read = read_heads(cache[slots], scales, torch.float32)
    off = (read - heads.float()).abs()
    # Three bits behind the point; below 2**-6 of the scale there are fewer.
    allowed = torch.maximum(heads.float().abs() * 2**-4, scales[:, None] * 2**-10)
    assert (off <= allowed).all()
    assert not cache.float()[[1, 2, 6, 7]].any()


def test_what_is_beyond_becomes_the_largest_and_no_number_stays_none() -> None:
    cache = torch.zeros(1, 1, 6).to(E4M3)
    heads = torch.tensor([[[1e30, -1e30, torch.inf, torch.nan, 460.0, -3.0]]])
    write_heads(cache, torch.tensor([0]), heads, torch.tensor([0.5]))
    read = read_heads(cache, torch.tensor([0.5]), torch.float32)[0, 0]
    assert torch.equal(read[[0, 1, 2, 4, 5]], torch.tensor([224.0, -224.0, 224.0, 224.0, -3.0]))
    assert read[3].isnan()


def test_what_is_read_back_is_exact_in_any_type() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(E4M3).view(1, 1, 256)
    scales = torch.tensor([2.0**-7])
    exact = read_heads(every, scales, torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        same = read_heads(every, scales, dtype).float()
        torch.testing.assert_close(same, exact, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("norms", [False, True])
def test_queries_do_not_know_how_keys_are_stored(norms: bool) -> None:
    inputs = _rotary(7, 4, 2, 16, norms=norms)(torch.Generator())
    qkv, cos, sin, keys, values, slots, *weights = inputs
    norm, key_norm, eps = weights or (None, None, 0.0)
    scales = random_scales(2)
    caches = torch.zeros_like(keys).to(E4M3), torch.zeros_like(keys).to(E4M3)
    want = rotary_and_cache(qkv, cos, sin, keys, values, slots, norm, key_norm, eps)
    got = rotary_and_cache(qkv, cos, sin, *caches, slots, norm, key_norm, eps, scales)
    assert torch.equal(got, want)
    for cache, plain, own in zip(caches, (keys, values), scales, strict=True):
        assert torch.equal(cache[slots].float(), quantized(plain[slots], own).float())
    x, weight = torch.randn(7, 24), torch.randn(8 * 16, 24)
    query = project_qkv(x, weight, None, cos, sin, keys, values, slots, norm, key_norm, eps)
    again = project_qkv(x, weight, None, cos, sin, *caches, slots, norm, key_norm, eps, scales)
    assert torch.equal(query, again)
    assert torch.equal(caches[0][slots].float(), quantized(keys[slots], scales[0]).float())


@pytest.mark.parametrize("name", READS)
def test_twins_read_what_the_numbers_stand_for(name: str) -> None:
    twin, make = READS[name]
    query, keys, values, *rest = make(torch.Generator())
    scales = random_scales(keys.shape[1])
    caches = [quantized(*each) for each in zip((keys, values), scales, strict=True)]
    dense = [read_heads(*each, torch.float32) for each in zip(caches, scales, strict=True)]
    torch.testing.assert_close(twin(query, *caches, *rest, scales), twin(query, *dense, *rest))


@needs_triton
@pytest.mark.parametrize("name", INTERPRETED)
def test_kernels_that_read(interpreter: ProcessPoolExecutor, name: str) -> None:
    interpreter.submit(check_read, name, torch.float16, "cpu").result()


@needs_triton
@pytest.mark.parametrize(
    ("name", "factor"),
    [("paged_attention-pages-of-16", 2.0**60), ("shared_decode-pages-of-16", 2.0**-60)],
)
def test_kernels_that_read_in_bfloat16(
    interpreter: ProcessPoolExecutor, name: str, factor: float
) -> None:
    """Queries become float16, whose range is less; the interpreter cuts the results off."""
    interpreter.submit(check_read, name, torch.bfloat16, "cpu", factor, times=4).result()


@needs_triton
@pytest.mark.parametrize("name", ["mqa-24", "norms-24"])
def test_rotary_kernel(interpreter: ProcessPoolExecutor, name: str) -> None:
    interpreter.submit(check_rotary, name, torch.float16, "cpu", torch.float16).result()


@needs_triton
@pytest.mark.parametrize("norms", [False, True])
def test_fused_projection(interpreter: ProcessPoolExecutor, norms: bool) -> None:
    tiles: dict[str, Any] = {"block": (64, 32), "group": 2, "stages": 1, "num_warps": 4}
    sizes = (70, 72, 6, 2)
    case = (sizes, 16, torch.float16, "cpu", torch.float16, not norms, norms)
    interpreter.submit(partial(check_project_qkv, *case, **tiles)).result()
