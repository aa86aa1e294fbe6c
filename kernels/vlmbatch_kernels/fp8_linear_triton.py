"""``block_linear`` in Triton: partial products over 128 inputs, scaled before they are summed.

Within 128 inputs the tensor cores sum by themselves; over more the sum is in float32, as the
weights were made for (DeepSeek-AI 2024, arXiv:2412.19437, section 3.3.2).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmbatch_kernels.fp8_linear import BLOCK
from vlmbatch_kernels.persistent import place
from vlmbatch_kernels.quantized_rows import QuantizedRows

_GROUP = 8  # tiles below each other that run together: they share what is read of the weight
_STAGES = 4


# Numbers of rows differ from step to step: none is to ask for another compilation.
@triton.jit(do_not_specialize=["rows"])
def _block_linear(
    x: tl.tensor,
    x_scales: tl.tensor,
    weight: tl.tensor,
    weight_scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    m, n = place(tl.program_id(0), tl.cdiv(rows, BLOCK_M), N // BLOCK, GROUP)
    row = m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = n * BLOCK + tl.arange(0, BLOCK)
    depth = tl.arange(0, BLOCK)
    is_row = row < rows
    left_at = x + row.to(tl.int64)[:, None] * K + depth[None, :]
    right_at = weight + column.to(tl.int64)[:, None] * K + depth[None, :]
    scale_at = x_scales + row * (K // BLOCK)
    total = tl.zeros((BLOCK_M, BLOCK), tl.float32)
    for k in range(K // BLOCK):
        left = tl.load(left_at + k * BLOCK, mask=is_row[:, None], other=0.0)
        right = tl.load(right_at + k * BLOCK)
        scale = tl.load(scale_at + k, mask=is_row, other=0.0)
        scale *= tl.load(weight_scales + n * (K // BLOCK) + k)
        total += tl.dot(left, right.T) * scale[:, None]
    if HAS_BIAS:
        total += tl.load(bias + column).to(tl.float32)[None, :]
    out_at = out + row.to(tl.int64)[:, None] * N + column[None, :]
    tl.store(out_at, total.to(out.dtype.element_ty), mask=is_row[:, None])


def block_linear(
    rows: QuantizedRows, values: Tensor, scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    (tokens, depth), size = rows.values.shape, len(values)
    assert size % BLOCK == depth % BLOCK == 0, f"a weight of shape {tuple(values.shape)}"
    assert values.shape == (size, depth) and scales.shape == (size // BLOCK, depth // BLOCK)
    assert rows.scales.shape == (tokens, depth // BLOCK)
    assert bias is None or (bias.shape == (size,) and bias.is_contiguous())
    assert scales.dtype == rows.scales.dtype == torch.float32
    assert all(each.is_contiguous() for each in (*rows[:2], values, scales))
    out = torch.empty(tokens, size, dtype=rows.dtype, device=values.device)
    block_m = 16 if tokens <= 16 else 64 if tokens <= 64 else 128
    grid = (triton.cdiv(tokens, block_m) * (size // BLOCK),)
    _block_linear[grid](
        rows.values,
        rows.scales,
        values,
        scales,
        values if bias is None else bias,
        out,
        tokens,
        N=size,
        K=depth,
        HAS_BIAS=bias is not None,
        BLOCK_M=block_m,
        BLOCK=BLOCK,
        GROUP=_GROUP,
        num_warps=8 if block_m == 128 else 4,
        num_stages=_STAGES,
    )
    return out
