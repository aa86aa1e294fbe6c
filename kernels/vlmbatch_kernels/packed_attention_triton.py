"""``packed_attention`` in Triton: a head is cut into two powers of two, so that little is padding.

Tiles come by the copy engine, which fills what lies behind a head's end with zeros.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from vlmbatch_kernels.paged_decode_triton import LOG2_E

_LOW = 64  # numbers of a head's first part
_BLOCK_M, _BLOCK_N = 128, 64  # queries and keys of a tile
_WARPS, _STAGES = 4, 3


@triton.jit
def _packed_attention(
    query_low: tl.tensor_descriptor,
    query_high: tl.tensor_descriptor,
    key_low: tl.tensor_descriptor,
    key_high: tl.tensor_descriptor,
    value_low: tl.tensor_descriptor,
    value_high: tl.tensor_descriptor,
    out: tl.tensor,
    cu_seqlens: tl.tensor,
    scale: tl.tensor,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    head = tl.program_id(1)
    start = tl.load(cu_seqlens + tl.program_id(2))
    length = tl.load(cu_seqlens + tl.program_id(2) + 1) - start
    first = tl.program_id(0) * BLOCK_M
    if first < length:
        low = query_low.load([start + first, head, 0]).reshape(BLOCK_M, LOW)
        high = query_high.load([start + first, head, LOW]).reshape(BLOCK_M, HIGH)
        sum_low = tl.zeros((BLOCK_M, LOW), tl.float32)
        sum_high = tl.zeros((BLOCK_M, HIGH), tl.float32)
        largest = tl.full((BLOCK_M,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        column = tl.arange(0, BLOCK_N)
        for key in range(0, length, BLOCK_N):
            scores = tl.dot(low, key_low.load([start + key, head, 0]).reshape(BLOCK_N, LOW).T)
            keys = key_high.load([start + key, head, LOW]).reshape(BLOCK_N, HIGH)
            scores = tl.dot(high, keys.T, scores)
            first_values = value_low.load([start + key, head, 0]).reshape(BLOCK_N, LOW)
            last_values = value_high.load([start + key, head, LOW]).reshape(BLOCK_N, HIGH)
            if key + BLOCK_N > length:
                is_own = key + column < length
                scores = tl.where(is_own[None, :], scores, -float("inf"))
                # Another sequence's, which may be infinite: no weight makes up for that.
                first_values = tl.where(is_own[:, None], first_values, 0.0)
                last_values = tl.where(is_own[:, None], last_values, 0.0)
            before = largest
            largest = tl.maximum(before, tl.max(scores, 1) * scale)
            weights = tl.exp2(scores * scale - largest[:, None])
            fading = tl.exp2(before - largest)
            total = total * fading + tl.sum(weights, 1)
            rounded = weights.to(out.dtype.element_ty)
            sum_low = tl.dot(rounded, first_values, sum_low * fading[:, None])
            sum_high = tl.dot(rounded, last_values, sum_high * fading[:, None])
        row = first + tl.arange(0, BLOCK_M)
        at = (start + row).to(tl.int64)[:, None] * NUM_HEADS * HEAD_DIM + head * HEAD_DIM
        is_row = (row < length)[:, None]
        share = (1.0 / total)[:, None]
        columns = tl.arange(0, LOW)[None, :]
        tl.store(out + at + columns, (sum_low * share).to(out.dtype.element_ty), mask=is_row)
        columns = LOW + tl.arange(0, HIGH)[None, :]
        mask = is_row & (columns < HEAD_DIM)
        tl.store(out + at + columns, (sum_high * share).to(out.dtype.element_ty), mask=mask)


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> Tensor:
    _, heads, size = query.shape
    high = max(16, triton.next_power_of_2(size - _LOW))
    assert _LOW < size <= 2 * _LOW and size % 8 == 0, f"heads of {size}"
    assert query.shape == key.shape == value.shape, (query.shape, key.shape, value.shape)
    assert query.dtype == key.dtype == value.dtype
    assert query.element_size() == 2 and cu_seqlens.is_contiguous()

    def parts(x: Tensor, rows: int) -> tuple[TensorDescriptor, TensorDescriptor]:
        assert x.stride()[1:] == (size, 1) and x.stride(0) % 8 == 0, f"strides {x.stride()}"
        return tuple(
            TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, 1, columns])
            for columns in (_LOW, high)
        )

    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    grid = (triton.cdiv(max_seqlen, _BLOCK_M), heads, len(cu_seqlens) - 1)
    _packed_attention[grid](
        *parts(query, _BLOCK_M),
        *parts(key, _BLOCK_N),
        *parts(value, _BLOCK_N),
        out,
        cu_seqlens,
        scale * LOG2_E.value,
        NUM_HEADS=heads,
        HEAD_DIM=size,
        LOW=_LOW,
        HIGH=high,
        BLOCK_M=_BLOCK_M,
        BLOCK_N=_BLOCK_N,
        num_warps=_WARPS,
        num_stages=_STAGES,
    )
    return out
