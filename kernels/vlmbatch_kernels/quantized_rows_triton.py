"""Quantized rows in Triton: one program a row, the row in registers, one pass over memory.

What is quantized was rounded to the dtype of the input before, as in torch's form.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmbatch_kernels.quantized_rows import (
    E4M3,
    E4M3_MAX,
    LEAST_MAX,
    MAX_SIZE,
    QuantizedRows,
)

_MAX: tl.constexpr = tl.constexpr(E4M3_MAX)
_LEAST: tl.constexpr = tl.constexpr(LEAST_MAX)


@triton.jit
def _store_quantized(
    row: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``row``: (BLOCK,) float32, zeros behind its SIZE columns; written to this program's row."""
    at = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    if GROUP == SIZE:
        scale = tl.maximum(tl.max(tl.abs(row), axis=0), _LEAST) / _MAX
        tl.store(scales + at, scale)
        scaled = row / scale
    else:
        groups = row.reshape(BLOCK // GROUP, GROUP)
        scale = tl.maximum(tl.max(tl.abs(groups), axis=1), _LEAST) / _MAX
        group = tl.arange(0, BLOCK // GROUP)
        tl.store(scales + at * (SIZE // GROUP) + group, scale, mask=group < SIZE // GROUP)
        scaled = (groups / scale[:, None]).reshape(BLOCK)
    # What is no number stays none, as in torch's form.
    scaled = tl.clamp(scaled, -_MAX, _MAX, propagate_nan=tl.PropagateNan.ALL)
    tl.store(values + at * SIZE + columns, scaled.to(values.dtype.element_ty), mask=columns < SIZE)


@triton.jit
def _quantize_rows(
    x: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)
    start = tl.program_id(0).to(tl.int64) * SIZE
    row = tl.load(x + start + columns, mask=columns < SIZE, other=0.0).to(tl.float32)
    _store_quantized(row, values, scales, SIZE, GROUP, BLOCK)


@triton.jit
def _rms_norm_residual_quantized(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    eps: tl.tensor,
    SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * SIZE
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    row = tl.load(x + start + columns, mask=inside, other=0.0).to(tl.float32)
    row += tl.load(residual + start + columns, mask=inside, other=0.0).to(tl.float32)
    rounded = row.to(total.dtype.element_ty)
    tl.store(total + start + columns, rounded, mask=inside)
    wide = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / SIZE + eps)
    normed = (wide * scale).to(total.dtype.element_ty).to(tl.float32)
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    row = (normed * gain).to(total.dtype.element_ty).to(tl.float32)
    _store_quantized(row, values, scales, SIZE, GROUP, BLOCK)


@triton.jit
def _silu_and_mul_quantized(
    x: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * 2 * SIZE
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    gate = tl.load(x + start + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + start + SIZE + columns, mask=inside, other=0.0).to(tl.float32)
    row = (gate * tl.sigmoid(gate) * up).to(x.dtype.element_ty).to(tl.float32)
    _store_quantized(row, values, scales, SIZE, GROUP, BLOCK)


def quantize_rows(x: Tensor, group: int | None = None, stored: torch.dtype = E4M3) -> QuantizedRows:
    """``stored``: what the scaled numbers are rounded to."""
    out, sizes = _output(x, x.shape[1], group, stored)
    _quantize_rows[(len(x),)](x, out.values, out.scales, **sizes)
    return out


def rms_norm_residual_quantized(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    group: int | None = None,
    stored: torch.dtype = E4M3,
) -> tuple[QuantizedRows, Tensor]:
    assert residual.shape == x.shape, f"{tuple(residual.shape)} beside {tuple(x.shape)}"
    assert weight.shape == x.shape[1:], f"{tuple(weight.shape)} weights for rows of {x.shape[1]}"
    assert residual.is_contiguous() and weight.is_contiguous()
    assert x.dtype == residual.dtype == weight.dtype
    out, sizes = _output(x, x.shape[1], group, stored)
    total = torch.empty_like(x)
    _rms_norm_residual_quantized[(len(x),)](
        x, residual, weight, total, out.values, out.scales, eps, **sizes
    )
    return out, total


def silu_and_mul_quantized(
    x: Tensor, group: int | None = None, stored: torch.dtype = E4M3
) -> QuantizedRows:
    assert x.shape[1] % 2 == 0, f"x of shape {tuple(x.shape)}"
    out, sizes = _output(x, x.shape[1] // 2, group, stored)
    _silu_and_mul_quantized[(len(x),)](x, out.values, out.scales, **sizes)
    return out


def _output(
    x: Tensor, size: int, group: int | None, stored: torch.dtype
) -> tuple[QuantizedRows, dict[str, int]]:
    """Empty rows, and what every kernel here is launched with."""
    group = group or size
    assert x.ndim == 2 and x.is_contiguous(), f"x of shape {tuple(x.shape)}"
    assert size <= MAX_SIZE and size % group == 0, f"rows of {size} in groups of {group}"
    assert group == size or group & (group - 1) == 0, f"groups of {group}"
    values = torch.empty(len(x), size, dtype=stored, device=x.device)
    scales = torch.empty(len(x), size // group, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(size)
    sizes = {"SIZE": size, "GROUP": group, "BLOCK": block}
    return QuantizedRows(values, scales, x.dtype), {
        **sizes,
        "num_warps": max(1, min(16, block // 256)),
    }
