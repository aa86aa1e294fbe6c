"""``rms_norm`` in Triton: one program a row, the row in registers, one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MAX_HIDDEN = 32768  # a row has to fit the registers of one program


@triton.jit
def _rms_norm(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    total: tl.tensor,
    eps: tl.tensor,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * HIDDEN
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    row = tl.load(x + start + columns, mask=inside, other=0.0)
    if ADD:
        other = tl.load(residual + start + columns, mask=inside, other=0.0)
        row = (row.to(tl.float32) + other.to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + start + columns, row, mask=inside)
    wide = row.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / HIDDEN + eps)
    rounded = (wide * scale).to(normed.dtype.element_ty).to(tl.float32)
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + start + columns, rounded * gain, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    normed = torch.empty_like(x)
    _launch(x, x, weight, normed, normed, eps, add=False)
    return normed


def rms_norm_residual(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    assert residual.shape == x.shape, f"{tuple(residual.shape)} beside {tuple(x.shape)}"
    assert residual.is_contiguous()
    assert residual.dtype == x.dtype, f"{residual.dtype} beside {x.dtype}"
    normed, total = torch.empty_like(x), torch.empty_like(x)
    _launch(x, residual, weight, normed, total, eps, add=True)
    return normed, total


def _launch(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    normed: Tensor,
    total: Tensor,
    eps: float,
    *,
    add: bool,
) -> None:
    assert x.ndim == 2, f"x of shape {tuple(x.shape)}"
    assert x.is_contiguous() and weight.is_contiguous()
    assert x.dtype == weight.dtype, f"x of {x.dtype}, weight of {weight.dtype}"
    rows, hidden = x.shape
    assert weight.shape == (hidden,), f"{tuple(weight.shape)} weights for rows of {hidden}"
    assert hidden <= _MAX_HIDDEN, f"rows of {hidden}"
    block = triton.next_power_of_2(hidden)
    _rms_norm[(rows,)](
        x,
        residual,
        weight,
        normed,
        total,
        eps,
        HIDDEN=hidden,
        BLOCK=block,
        ADD=add,
        num_warps=max(1, min(16, block // 256)),
    )
