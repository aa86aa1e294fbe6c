"""``layer_norm_residual`` in Triton: one program a row, the row in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MAX_HIDDEN = 32768  # a row has to fit the registers of one program


@triton.jit
def _layer_norm_residual(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    normed: tl.tensor,
    total: tl.tensor,
    eps: tl.tensor,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * HIDDEN
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    row = tl.load(x + start + columns, mask=inside, other=0.0).to(tl.float32)
    row += tl.load(residual + start + columns, mask=inside, other=0.0).to(tl.float32)
    rounded = row.to(total.dtype.element_ty)
    tl.store(total + start + columns, rounded, mask=inside)
    wide = rounded.to(tl.float32)
    mean = tl.sum(wide, axis=0) / HIDDEN
    centred = tl.where(inside, wide - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / HIDDEN + eps)
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + start + columns, centred * scale * gain + shift, mask=inside)


def layer_norm_residual(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    hidden = x.shape[-1]
    assert residual.shape == x.shape, f"{tuple(residual.shape)} beside {tuple(x.shape)}"
    assert weight.shape == bias.shape == (hidden,), f"{tuple(weight.shape)}, rows of {hidden}"
    assert all(tensor.is_contiguous() for tensor in (x, residual, weight, bias))
    assert x.dtype == residual.dtype == weight.dtype == bias.dtype
    assert hidden <= _MAX_HIDDEN, f"rows of {hidden}"
    normed, total = torch.empty_like(x), torch.empty_like(x)
    block = triton.next_power_of_2(hidden)
    _layer_norm_residual[(x.numel() // hidden,)](
        x,
        residual,
        weight,
        bias,
        normed,
        total,
        eps,
        HIDDEN=hidden,
        BLOCK=block,
        num_warps=max(1, min(16, block // 256)),
    )
    return normed, total
