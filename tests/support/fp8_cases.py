"""Checks of what computes in e4m3, on a GPU and in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from kernel_cases import _fresh_memory_is_nan, triton_form
from torch import Tensor
from vlmbatch_kernels.fp8_linear import block_linear, dequantize
from vlmbatch_kernels.quantized_rows import (
    E4M3_MAX,
    QuantizedRows,
    plain_quantized_rows,
    quantize_rows,
    rms_norm_residual_quantized,
    silu_and_mul_quantized,
)

KERNELS: dict[str, Callable[..., Any]] = {
    "rows": quantize_rows,
    "norm": rms_norm_residual_quantized,
    "gated": silu_and_mul_quantized,
}
SIZES = [(5, 203, None), (3, 4096, None), (7, 384, 128), (2, 640, 128)]


def check_quantized_rows(
    name: str,
    size: tuple[int, int, int | None],
    dtype: torch.dtype,
    device: str,
    stored: torch.dtype,
) -> None:
    """A kernel beside its twin. ``size``: rows, columns, columns of a group.

    Both compute what they quantize in ``dtype``, where the last bit may differ. ``stored``: what
    the kernel rounds scaled numbers to; where it is wider than e4m3, hardly anything else is lost.
    """
    rows, columns, group = size
    inputs = _inputs(name, rows, columns, dtype)
    twin = KERNELS[name].__wrapped__  # type: ignore[attr-defined]
    form = triton_form(KERNELS[name])
    with _fresh_memory_is_nan():
        got = form(*(_placed(each, device) for each in inputs), group=group, stored=stored)
    want = twin(*inputs, group=group)
    if name == "norm":
        (got, total), (want, plain_total) = got, want
        assert torch.equal(total.cpu(), plain_total)
    assert got.dtype == want.dtype == dtype
    assert got.scales.dtype == torch.float32 and got.scales.shape == want.scales.shape
    assert got.values.shape == want.values.shape and got.values.dtype == stored
    last_bits = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.scales.cpu(), want.scales, rtol=last_bits, atol=0)
    values = got.values.cpu().float()
    assert values.abs().max() <= E4M3_MAX
    # e4m3 has three bits behind the point, and numbers down to 2**-9.
    step = torch.maximum(want.values.float().abs(), values.abs()).clamp(min=2**-6) * 2**-3
    assert ((values - want.values.float()).abs() <= step).all()
    # Of a row of zeros nothing is divided by zero.
    assert torch.equal(values[0], torch.zeros(columns))


def _inputs(name: str, rows: int, columns: int, dtype: torch.dtype) -> tuple[Any, ...]:
    x = torch.randn(rows, 2 * columns if name == "gated" else columns) * 3
    x[0] = 0
    if name != "norm":
        return (x.to(dtype),)
    residual = torch.randn(rows, columns)
    residual[0] = 0
    return x.to(dtype), residual.to(dtype), torch.randn(columns).to(dtype), 1e-5


def _placed(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def make_block_weight(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Values and scales, which differ between blocks by an order of magnitude."""
    scales = torch.rand(outputs // 128, inputs // 128) / 400 + 1e-4
    return (torch.randn(outputs, inputs) * 80).to(torch.float8_e4m3fn), scales


def check_block_linear(
    shape: tuple[int, int, int], bias: bool, dtype: torch.dtype, device: str
) -> None:
    """``shape``: rows, outputs, inputs. The same rows in e4m3, multiplied in float64."""
    rows, outputs, inputs = shape
    values, scales = make_block_weight(outputs, inputs)
    quantized = plain_quantized_rows(torch.randn(rows, inputs).to(dtype), 128)
    added = torch.randn(outputs).to(dtype) if bias else None
    exact = quantized.dequantized().double() @ dequantize(values, scales, torch.float64).T
    exact += 0 if added is None else added
    plain = block_linear.__wrapped__(quantized, values, scales, added)  # type: ignore[attr-defined]
    placed = QuantizedRows(quantized.values.to(device), quantized.scales.to(device), dtype)
    with _fresh_memory_is_nan():
        got = triton_form(block_linear)(
            placed,
            values.to(device),
            scales.to(device),
            None if added is None else added.to(device),
        ).cpu()
    assert got.dtype == plain.dtype == dtype and got.shape == plain.shape
    assert (got - exact).norm() <= 2 * (plain - exact).norm()
