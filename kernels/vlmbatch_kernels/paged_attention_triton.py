"""``paged_attention`` in Triton: a program for each tile of a sequence's queries and head.

The softmax is computed as keys come by, with the maximum and the sum so far (arXiv:2307.08691,
algorithm 1). Tiles with the most keys start first, so that short ones fill the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmbatch_kernels.paged_decode_triton import LOG2_E
from vlmbatch_kernels.paged_heads import check_caches
from vlmbatch_kernels.paged_heads_triton import in_float16
from vlmbatch_kernels.tiles import num_stages

if TYPE_CHECKING:
    from vlmbatch_kernels.paged_attention import PageLayout, Scores


@triton.jit
def _attend_keys(
    state_max,
    state_sum,
    acc,
    query,
    query_at,
    keys,
    values,
    table,
    first,
    end,
    length,
    scale,
    softcap,
    row_stride: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    GRANULE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_D)
    in_row = columns < HEAD_DIM
    for start in tl.range(first, end, BLOCK_N):
        page = tl.load(table + start // PAGE).to(tl.int64)
        at = page * GRANULE + start % PAGE + tl.arange(0, BLOCK_N)
        key_place = at[None, :] * row_stride + columns[:, None]
        key = tl.load(keys + key_place, mask=in_row[:, None], other=0.0)
        products = tl.dot(query, key.to(query.dtype), input_precision="ieee") * scale
        if SOFTCAP:
            # tanh by exponentials of base 2: ``scale`` brings log2(e) along.
            products = softcap * (1.0 - 2.0 / (tl.exp2(products * (2.0 / softcap)) + 1.0))
            products = products * LOG2_E
        is_value = in_row[None, :]
        if MASKED:
            key_at = start + tl.arange(0, BLOCK_N)
            seen = (key_at[None, :] <= query_at[:, None]) & (key_at < length)[None, :]
            if WINDOW:
                seen &= key_at[None, :] > query_at[:, None] - WINDOW
            # Behind the end anything may lie: no weight hides a NaN.
            is_value = is_value & (key_at < length)[:, None]
            products = tl.where(seen, products, -float("inf"))
        new_max = tl.maximum(state_max, tl.max(products, 1))
        # Of a query that has seen no key yet, all is minus infinity.
        base = tl.where(new_max == -float("inf"), 0.0, new_max)
        weights = tl.exp2(products - base[:, None])
        decay = tl.exp2(state_max - base)
        state_sum = state_sum * decay + tl.sum(weights, 1)
        acc = acc * decay[:, None]
        value_place = at[:, None] * row_stride + columns[None, :]
        value = tl.load(values + value_place, mask=is_value, other=0.0).to(query.dtype)
        acc = tl.dot(weights.to(value.dtype), value, acc, input_precision="ieee")
        state_max = new_max
    return state_max, state_sum, acc


# What varies from step to step must not ask for another compilation: a CUDA graph's capture could
# not bear it.
@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["block_table", "cu_seqlens_q", "seqlens_k"],
)
def _paged_attention(
    query,
    key_cache,
    value_cache,
    out,
    block_table,
    cu_seqlens_q,
    seqlens_k,
    scales,
    table_stride,
    scale,
    softcap,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    GRANULE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SCALED: tl.constexpr,
):
    tile = tl.num_programs(2) - 1 - tl.program_id(2)
    sequence = tl.program_id(1)
    head = tl.program_id(0)
    first_query = tl.load(cu_seqlens_q + sequence)
    num_queries = tl.load(cu_seqlens_q + sequence + 1) - first_query
    if tile * BLOCK_M >= num_queries:
        return
    length = tl.load(seqlens_k + sequence)

    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query_at = length - num_queries + rows
    columns = tl.arange(0, BLOCK_D)
    in_row = columns < HEAD_DIM
    inside = (rows < num_queries)[:, None] & in_row[None, :]
    at = ((first_query + rows).to(tl.int64) * NUM_HEADS + head)[:, None] * HEAD_DIM + columns
    tile_query = tl.load(query + at, mask=inside, other=0.0)

    kv_head = head // (NUM_HEADS // NUM_KV_HEADS)
    if SCALED:
        scale *= tl.load(scales + kv_head)
        if tile_query.dtype == tl.bfloat16:
            tile_query, power = in_float16(tile_query)
            scale *= power
    keys = key_cache + kv_head * HEAD_DIM
    values = value_cache + kv_head * HEAD_DIM
    table = block_table + sequence * table_stride
    first_at = length - num_queries + tile * BLOCK_M
    end = tl.minimum(length, first_at + BLOCK_M)
    start = 0
    if WINDOW:
        start = tl.maximum(first_at - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
        unmasked = start
    else:
        unmasked = (first_at + 1) // BLOCK_N * BLOCK_N  # all queries see all keys before it

    state_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    state_sum = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    row_stride: tl.constexpr = NUM_KV_HEADS * HEAD_DIM
    state_max, state_sum, acc = _attend_keys(
        state_max, state_sum, acc, tile_query, query_at, keys, values, table,
        start, unmasked, length, scale, softcap, row_stride, HEAD_DIM, BLOCK_D, BLOCK_N,
        PAGE, GRANULE, WINDOW, SOFTCAP, False,
    )  # fmt: skip
    state_max, state_sum, acc = _attend_keys(
        state_max, state_sum, acc, tile_query, query_at, keys, values, table,
        unmasked, end, length, scale, softcap, row_stride, HEAD_DIM, BLOCK_D, BLOCK_N,
        PAGE, GRANULE, WINDOW, SOFTCAP, True,
    )  # fmt: skip
    result = acc / state_sum[:, None]
    if SCALED:
        result *= tl.load(scales + NUM_KV_HEADS + kv_head)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    seqlens_k: Tensor,
    max_seqlen_q: int,
    layout: PageLayout,
    scores: Scores,
    scales: Tensor | None = None,
) -> Tensor:
    _, num_heads, size = query.shape
    num_kv_heads = key_cache.shape[1]
    assert query.is_contiguous()
    check_caches(key_cache, value_cache, query.dtype, scales)
    assert num_heads % num_kv_heads == 0 and key_cache.shape[2] == size
    assert block_table.stride(1) == 1 and seqlens_k.shape == (block_table.shape[0],)
    out = torch.empty_like(query)
    block_d = max(16, triton.next_power_of_2(size))
    # In float32 there are no tensor cores, and larger tiles would not fit in the registers.
    exact, wide = query.element_size() > 2, block_d > 128
    block_m = 16 if max_seqlen_q <= 16 or exact else 64 if max_seqlen_q <= 64 or wide else 128
    block_n = min(32 if exact or wide else 64, layout.page_size)
    assert layout.page_size % block_n == 0
    row_bytes = block_d * query.element_size()
    grid = (num_heads, block_table.shape[0], triton.cdiv(max_seqlen_q, block_m))
    _paged_attention[grid](
        query,
        key_cache,
        value_cache,
        out,
        block_table,
        cu_seqlens_q,
        seqlens_k,
        scales,
        block_table.stride(0),
        scores.scale * LOG2_E.value,
        scores.softcap,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=size,
        BLOCK_D=block_d,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        PAGE=layout.page_size,
        GRANULE=layout.granule,
        WINDOW=scores.window,
        SOFTCAP=scores.softcap > 0,
        SCALED=scales is not None,
        num_warps=8 if block_m == 128 else 4,
        num_stages=num_stages(2 * block_n * row_bytes, block_m * row_bytes, query.device),
    )
    return out
