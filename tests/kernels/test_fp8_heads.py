"""Keys and values in e4m3 on the CPU: the twins. For the kernels see test_triton_interpreted."""

from __future__ import annotations

import pytest
import torch
from fp8_kv_cases import (
    READS,
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
