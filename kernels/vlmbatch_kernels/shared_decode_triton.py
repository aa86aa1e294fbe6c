"""``shared_decode`` in Triton: what rows share first, then ``paged_decode`` over the rest of each.

The rows of a tile read what they share once, as more rows of the same matrix products (Juravsky et
al., arXiv:2402.05099). What the softmax has come to by then is written for every row, in float32,
and ``paged_decode`` goes on from there instead of from nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmbatch_kernels.paged_decode_triton import LOG2_E, SharedState, attend_keys, paged_decode
from vlmbatch_kernels.paged_heads import check_caches
from vlmbatch_kernels.paged_heads_triton import in_float16
from vlmbatch_kernels.shared_decode import MAX_TILE_ROWS
from vlmbatch_kernels.tiles import num_stages

if TYPE_CHECKING:
    from vlmbatch_kernels.paged_attention import PageLayout, Scores

_MIN_ROWS = 16  # of a matrix product
_MAX_LINES = 64  # of the same, unless one row has more
_PAGES = 16  # looked up at a time


@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["block_table", "shared_lens", "tiles"],
)
def _attend_prefixes(
    query: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    shared_max: tl.tensor,
    shared_sum: tl.tensor,
    shared_acc: tl.tensor,
    block_table: tl.tensor,
    shared_lens: tl.tensor,
    tiles: tl.tensor,
    scales: tl.tensor,
    table_stride: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGES: tl.constexpr,
    PAGE: tl.constexpr,
    GRANULE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SCALED: tl.constexpr,
):
    tile = tl.program_id(0) // NUM_KV_HEADS
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    first_row = tl.load(tiles + 2 * tile)
    num_rows = tl.load(tiles + 2 * tile + 1) - tl.program_id(1) * ROWS
    if num_rows <= 0:
        return
    length = tl.load(shared_lens + first_row)
    table = block_table + first_row * table_stride

    # The heads of a group, of one row behind those of another.
    group: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    lines = tl.arange(0, BLOCK_M)
    row = first_row + tl.program_id(1) * ROWS + lines // group
    head_at = row.to(tl.int64) * NUM_HEADS + kv_head * group + lines % group
    is_head = lines < tl.minimum(num_rows, ROWS) * group
    columns = tl.arange(0, BLOCK_D)
    at = head_at[:, None] * HEAD_DIM + columns
    inside = is_head[:, None] & (columns < HEAD_DIM)[None, :]
    heads = tl.load(query + at, mask=inside, other=0.0)

    if SCALED:
        scale *= tl.load(scales + kv_head)
        if heads.dtype == tl.bfloat16:
            heads, power = in_float16(heads)
            scale *= power
    state_max, state_sum, acc = attend_keys(
        tl.full((BLOCK_M,), -float("inf"), tl.float32),
        tl.zeros((BLOCK_M,), tl.float32),
        tl.zeros((BLOCK_M, BLOCK_D), tl.float32),
        heads, kv_head, key_cache, value_cache, table,
        0, length, scale, softcap, NUM_KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N,
        PAGES, PAGE, GRANULE, 0, SOFTCAP,
    )  # fmt: skip
    tl.store(shared_max + head_at, state_max, mask=is_head)
    tl.store(shared_sum + head_at, state_sum, mask=is_head)
    tl.store(shared_acc + at, acc, mask=inside)


def shared_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    shared_lens: Tensor,
    tiles: Tensor,
    layout: PageLayout,
    scores: Scores,
    scales: Tensor | None = None,
) -> Tensor:
    batch, num_heads, size = query.shape
    num_kv_heads = key_cache.shape[1]
    assert query.is_contiguous()
    check_caches(key_cache, value_cache, query.dtype, scales)
    assert num_heads % num_kv_heads == 0 and key_cache.shape[2] == size
    assert block_table.stride(1) == 1 and shared_lens.shape == (batch,) == block_table.shape[:1]
    assert tiles.shape[1:] == (2,) and tiles.is_contiguous()
    # Each in memory of its own: all begin at multiples of what a compiled form may count on.
    state_max = query.new_empty(batch, num_heads, dtype=torch.float32)
    state_sum = torch.empty_like(state_max)
    acc = torch.empty_like(query, dtype=torch.float32)
    group = num_heads // num_kv_heads
    block_n = min(32, layout.page_size)
    block_d = max(_MIN_ROWS, triton.next_power_of_2(size))
    # In float32 there are no tensor cores, and larger tiles would not fit in the registers.
    exact = query.element_size() > 2
    rows = min(MAX_TILE_ROWS, max(1, (_MIN_ROWS if exact else _MAX_LINES) // group))
    block_m = max(_MIN_ROWS, triton.next_power_of_2(rows * group))
    row_bytes = block_d * query.element_size()
    queries_and_weights = block_m * (row_bytes + 4 * block_n)
    grid = (len(tiles) * num_kv_heads, triton.cdiv(MAX_TILE_ROWS, rows))
    _attend_prefixes[grid](
        query,
        key_cache,
        value_cache,
        state_max,
        state_sum,
        acc,
        block_table,
        shared_lens,
        tiles,
        scales,
        block_table.stride(0),
        scores.scale * LOG2_E.value,
        scores.softcap,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=size,
        BLOCK_D=block_d,
        ROWS=rows,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        PAGES=_PAGES,
        PAGE=layout.page_size,
        GRANULE=layout.granule,
        SOFTCAP=scores.softcap > 0,
        SCALED=scales is not None,
        num_warps=4 if exact else min(8, block_m // 16),
        num_stages=num_stages(2 * block_n * row_bytes, queries_and_weights, query.device),
    )
    shared = SharedState(shared_lens, state_max, state_sum, acc)
    return paged_decode(
        query, key_cache, value_cache, block_table, seqlens_k, layout, scores, scales, shared
    )
