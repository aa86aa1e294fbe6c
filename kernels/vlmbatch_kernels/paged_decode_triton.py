"""``paged_decode`` in Triton: a program, mostly of one warp, for each sequence and key-value head.

Decoding reads every key and value once and does little else. One warp with three tiles in flight,
four such programs on a multiprocessor, ask for so many bytes at a time that a third of an H100's
multiprocessors read at the full rate of its memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmbatch_kernels.paged_heads import check_caches
from vlmbatch_kernels.paged_heads_triton import in_float16
from vlmbatch_kernels.tiles import num_stages

if TYPE_CHECKING:
    from vlmbatch_kernels.paged_attention import PageLayout, Scores

LOG2_E = tl.constexpr(math.log2(math.e))
_MIN_ROWS = 16  # of a matrix product
_PAGES = 16  # looked up at a time


@triton.jit
def attend_keys(
    state_max: tl.tensor,
    state_sum: tl.tensor,
    acc: tl.tensor,
    heads: tl.tensor,
    kv_head: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    table: tl.tensor,
    first: tl.tensor,
    length: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGES: tl.constexpr,
    PAGE: tl.constexpr,
    GRANULE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """Take keys ``first`` to ``length`` of a block table into the softmax's state.

    ``first`` begins a tile of ``BLOCK_N`` keys. The state: maximum of the products so far, times
    log2(e); sum of the weights; values, as they are stored, times their weights.
    """
    columns = tl.arange(0, BLOCK_D)
    in_row = columns < HEAD_DIM
    SPAN: tl.constexpr = PAGES * PAGE
    for base in tl.range(first // SPAN * SPAN, length, SPAN):
        # Many page starts at once: a load for each tile would keep the next tiles waiting.
        pages = base // PAGE + tl.arange(0, PAGES)
        starts = tl.load(table + pages, mask=pages * PAGE < length, other=0)
        for start in tl.range(tl.maximum(first, base), tl.minimum(length, base + SPAN), BLOCK_N):
            page = tl.sum(tl.where(pages == start // PAGE, starts, 0))
            slots = (page * GRANULE + start % PAGE + tl.arange(0, BLOCK_N)).to(tl.int64)
            place = (slots * NUM_KV_HEADS + kv_head)[:, None] * HEAD_DIM + columns[None, :]
            key = tl.load(key_cache + place, mask=in_row[None, :], other=0.0)
            products = tl.dot(heads, key.to(heads.dtype).T, input_precision="ieee") * scale
            if SOFTCAP:
                # tanh by exponentials of base 2: ``scale`` brings log2(e) along.
                products = softcap * (1.0 - 2.0 / (tl.exp2(products * (2.0 / softcap)) + 1.0))
                products = products * LOG2_E
            key_at = start + tl.arange(0, BLOCK_N)
            seen = key_at < length
            # Behind the end anything may lie: no weight hides a NaN.
            is_value = seen[:, None] & in_row[None, :]
            if WINDOW:
                seen &= key_at >= length - WINDOW
            products = tl.where(seen[None, :], products, -float("inf"))
            new_max = tl.maximum(state_max, tl.max(products, 1))
            weights = tl.exp2(products - new_max[:, None])
            decay = tl.exp2(state_max - new_max)
            state_sum = state_sum * decay + tl.sum(weights, 1)
            acc = acc * decay[:, None]
            value = tl.load(value_cache + place, mask=is_value, other=0.0).to(heads.dtype)
            acc = tl.dot(weights.to(value.dtype), value, acc, input_precision="ieee")
            state_max = new_max
    return state_max, state_sum, acc


# What varies from step to step must not ask for another compilation: a CUDA graph's capture could
# not bear it.
@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["block_table", "seqlens_k", "shared_lens"],
)
def _paged_decode(
    query: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    out: tl.tensor,
    block_table: tl.tensor,
    seqlens_k: tl.tensor,
    shared_lens: tl.tensor,
    shared_max: tl.tensor,
    shared_sum: tl.tensor,
    shared_acc: tl.tensor,
    scales: tl.tensor,
    table_stride: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGES: tl.constexpr,
    PAGE: tl.constexpr,
    GRANULE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SHARED: tl.constexpr,
    SCALED: tl.constexpr,
):
    sequence = tl.program_id(0) // NUM_KV_HEADS
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    length = tl.load(seqlens_k + sequence)
    table = block_table + sequence * table_stride

    group: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    rows = tl.arange(0, BLOCK_G)
    columns = tl.arange(0, BLOCK_D)
    in_row = columns < HEAD_DIM
    head_at = sequence.to(tl.int64) * NUM_HEADS + kv_head * group + rows
    at = head_at[:, None] * HEAD_DIM + columns
    inside = (rows < group)[:, None] & in_row[None, :]
    heads = tl.load(query + at, mask=inside, other=0.0)

    if SCALED:
        scale *= tl.load(scales + kv_head)
        if heads.dtype == tl.bfloat16:
            heads, power = in_float16(heads)
            scale *= power
    first = 0
    if WINDOW:
        first = tl.maximum(length - WINDOW, 0) // BLOCK_N * BLOCK_N
    if SHARED:
        first = tl.load(shared_lens + sequence)
        begun = rows < tl.where(first > 0, group, 0)
        state_max = tl.load(shared_max + head_at, mask=begun, other=-float("inf"))
        state_sum = tl.load(shared_sum + head_at, mask=begun, other=0.0)
        acc = tl.load(shared_acc + at, mask=begun[:, None] & in_row[None, :], other=0.0)
    else:
        state_max = tl.full((BLOCK_G,), -float("inf"), tl.float32)
        state_sum = tl.zeros((BLOCK_G,), tl.float32)
        acc = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    state_max, state_sum, acc = attend_keys(
        state_max, state_sum, acc, heads, kv_head, key_cache, value_cache, table,
        first, length, scale, softcap, NUM_KV_HEADS, HEAD_DIM, BLOCK_D, BLOCK_N,
        PAGES, PAGE, GRANULE, WINDOW, SOFTCAP,
    )  # fmt: skip
    result = acc / state_sum[:, None]
    if SCALED:
        result *= tl.load(scales + NUM_KV_HEADS + kv_head)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


class SharedState(NamedTuple):
    """The softmax over the prefixes of rows, as ``attend_keys`` leaves it.

    ``lens``: (B,) int32, keys of each row that it has taken in, whole tiles of them. Where that is
    0 the rest holds anything: ``max`` and ``sum`` (B, H), ``acc`` (B, H, D), all float32.
    """

    lens: Tensor
    max: Tensor
    sum: Tensor
    acc: Tensor


def paged_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    layout: PageLayout,
    scores: Scores,
    scales: Tensor | None = None,
    shared: SharedState | None = None,
) -> Tensor:
    batch, num_heads, size = query.shape
    num_kv_heads = key_cache.shape[1]
    assert query.is_contiguous()
    check_caches(key_cache, value_cache, query.dtype, scales)
    assert num_heads % num_kv_heads == 0 and key_cache.shape[2] == size
    assert block_table.stride(1) == 1 and seqlens_k.shape == (batch,) == block_table.shape[:1]
    assert shared is None or not scores.window
    out = torch.empty_like(query)
    block_n = min(32, layout.page_size)
    assert layout.page_size % block_n == 0
    block_d = max(_MIN_ROWS, triton.next_power_of_2(size))
    block_g = max(_MIN_ROWS, triton.next_power_of_2(num_heads // num_kv_heads))
    row_bytes = block_d * query.element_size()
    _paged_decode[(batch * num_kv_heads,)](
        query,
        key_cache,
        value_cache,
        out,
        block_table,
        seqlens_k,
        *(shared or (None,) * 4),
        scales,
        block_table.stride(0),
        scores.scale * LOG2_E.value,
        scores.softcap,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=size,
        BLOCK_D=block_d,
        BLOCK_G=block_g,
        BLOCK_N=block_n,
        PAGES=_PAGES,
        PAGE=layout.page_size,
        GRANULE=layout.granule,
        WINDOW=scores.window,
        SOFTCAP=scores.softcap > 0,
        SHARED=shared is not None,
        SCALED=scales is not None,
        num_warps=1 if block_g == _MIN_ROWS and query.element_size() == 2 else 4,
        num_stages=num_stages(2 * block_n * row_bytes, block_g * row_bytes, query.device),
    )
    return out
