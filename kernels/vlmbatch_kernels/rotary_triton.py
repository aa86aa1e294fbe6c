"""``rotary_and_cache`` in Triton: one pass over the fused projection, straight into the pool."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vlmbatch_kernels.paged_heads import check_caches
from vlmbatch_kernels.paged_heads_triton import scaled_heads

_HEADS = 8  # of one program


@triton.jit
def _rotary_and_cache(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    query: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    slot_mapping: tl.tensor,
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    scales: tl.tensor,
    eps: tl.tensor,
    token_stride: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    query_parts: tl.constexpr = (NUM_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    key_parts: tl.constexpr = (NUM_KV_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS

    if part < query_parts:
        first = part * BLOCK_HEADS
        end = NUM_HEADS
        source = 0
        norm = query_norm
        row = token * NUM_HEADS * 2 * HALF
    else:
        row = tl.load(slot_mapping + token) * NUM_KV_HEADS * 2 * HALF
        end = NUM_KV_HEADS
        norm = key_norm
        if part < query_parts + key_parts:
            first = (part - query_parts) * BLOCK_HEADS
            source = NUM_HEADS
        else:
            first = (part - query_parts - key_parts) * BLOCK_HEADS
            source = NUM_HEADS + NUM_KV_HEADS

    heads = first + tl.arange(0, BLOCK_HEADS)[:, None]
    columns = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (heads < end) & (columns < HALF)
    at = heads * 2 * HALF + columns
    read = qkv + token * token_stride + source * 2 * HALF + at
    low = tl.load(read, mask=inside)
    high = tl.load(read + HALF, mask=inside)
    if part < query_parts + key_parts:
        angle = token * 2 * HALF + columns
        in_row = columns < HALF
        cos_low = tl.load(cos + angle, mask=in_row).to(tl.float32)
        cos_high = tl.load(cos + angle + HALF, mask=in_row).to(tl.float32)
        sin_low = tl.load(sin + angle, mask=in_row).to(tl.float32)
        sin_high = tl.load(sin + angle + HALF, mask=in_row).to(tl.float32)
        wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
        if HAS_NORMS:
            squares = tl.sum(wide_low * wide_low, axis=1) + tl.sum(wide_high * wide_high, axis=1)
            scale = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
            gain_low = tl.load(norm + columns, mask=in_row, other=0.0).to(tl.float32)
            gain_high = tl.load(norm + columns + HALF, mask=in_row, other=0.0).to(tl.float32)
            # Rounded where torch's form is: behind the scale and behind the weight.
            wide_low = (wide_low * scale).to(low.dtype).to(tl.float32) * gain_low
            wide_high = (wide_high * scale).to(high.dtype).to(tl.float32) * gain_high
            wide_low = wide_low.to(low.dtype).to(tl.float32)
            wide_high = wide_high.to(high.dtype).to(tl.float32)
        low = (wide_low * cos_low + wide_high * sin_low).to(low.dtype)
        high = (wide_high * cos_high + wide_low * sin_high).to(high.dtype)
    if part < query_parts:
        tl.store(query + row + at, low, mask=inside)
        tl.store(query + row + at + HALF, high, mask=inside)
    elif part < query_parts + key_parts:
        target = key_cache + row + at
        _store(target, low, high, scales, heads, inside, HALF, NUM_KV_HEADS, 0, SCALED)
    else:
        target = value_cache + row + at
        _store(target, low, high, scales, heads, inside, HALF, NUM_KV_HEADS, NUM_KV_HEADS, SCALED)


@triton.jit
def _store(
    target: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    scales: tl.tensor,
    heads: tl.tensor,
    inside: tl.tensor,
    HALF: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    FIRST: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Write both halves of key-value heads, with the scales from ``FIRST`` on."""
    if SCALED:
        scale = tl.load(scales + FIRST + heads, mask=heads < NUM_KV_HEADS, other=1.0)
        low = scaled_heads(low, scale, target)
        high = scaled_heads(high, scale, target)
    tl.store(target, low, mask=inside)
    tl.store(target + HALF, high, mask=inside)


def rotary_and_cache(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
    scales: Tensor | None = None,
) -> Tensor:
    tokens, all_heads, size = qkv.shape
    num_kv_heads = key_cache.shape[1]
    num_heads = all_heads - 2 * num_kv_heads
    assert num_heads > 0 and size % 2 == 0, f"qkv of shape {tuple(qkv.shape)}"
    assert qkv.stride()[1:] == (size, 1), f"qkv of strides {qkv.stride()}"
    assert cos.shape == sin.shape == (tokens, 1, size), f"{tuple(cos.shape)}, {tuple(sin.shape)}"
    assert key_cache.shape[2] == size
    assert slot_mapping.shape == (tokens,), f"{tuple(slot_mapping.shape)} slots, {tokens} tokens"
    assert all(tensor.is_contiguous() for tensor in (cos, sin, slot_mapping))
    assert cos.dtype == sin.dtype == qkv.dtype
    check_caches(key_cache, value_cache, qkv.dtype, scales)
    for norm in (query_norm, key_norm):
        assert (norm is None) == (query_norm is None), "one norm without the other"
        assert norm is None or (norm.shape == (size,) and norm.is_contiguous())
        assert norm is None or norm.dtype == qkv.dtype
    query = qkv.new_empty(tokens, num_heads, size)
    parts = triton.cdiv(num_heads, _HEADS) + 2 * triton.cdiv(num_kv_heads, _HEADS)
    _rotary_and_cache[(tokens, parts)](
        qkv,
        cos,
        sin,
        query,
        key_cache,
        value_cache,
        slot_mapping,
        cos if query_norm is None else query_norm,
        cos if key_norm is None else key_norm,
        scales,
        eps,
        qkv.stride(0),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HALF=size // 2,
        HAS_NORMS=query_norm is not None,
        SCALED=scales is not None,
        BLOCK_HEADS=_HEADS,
        BLOCK_HALF=triton.next_power_of_2(size // 2),
        num_warps=4,
    )
    return query
