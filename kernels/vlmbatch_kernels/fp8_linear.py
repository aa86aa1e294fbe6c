"""Dense layers whose weights are in e4m3: with a scale an output channel, or a 128x128 block.

On a GPU that multiplies e4m3 the rows are quantized as well (``QuantizedRows``): with a scale a row
beside channels, with a scale for 128 columns beside blocks. Elsewhere the weight is dequantized.
Letters in shapes: T tokens, N outputs, K inputs.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from vlmbatch_kernels.dispatch import has_triton, triton_on_gpu
from vlmbatch_kernels.quantized_rows import MAX_SIZE, QuantizedRows

BLOCK = 128
_ALIGNMENT = 16  # rows of one byte a number begin where the copy engine can fetch them
_CAPABILITY = (9, 0)  # of products with a scale a row


def dequantize(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` (N, K) times ``scales``: (N, 1), or (ceil(N / 128), ceil(K / 128))."""
    wide = scales.float()
    if scales.shape != (len(values), 1):
        wide = wide.repeat_interleave(BLOCK, 0)[: len(values)]
        wide = wide.repeat_interleave(BLOCK, 1)[:, : values.shape[1]]
    return (values.float() * wide).to(dtype)


def multiplies(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> bool:
    """Whether ``device`` multiplies such weights in e4m3, with activations of ``dtype``."""
    return (
        device.type == "cuda"
        and dtype.itemsize == 2
        and outputs % _ALIGNMENT == inputs % _ALIGNMENT == 0
        and inputs <= MAX_SIZE
        and _has_products(device)
    )


@cache
def _has_products(device: torch.device) -> bool:
    return has_triton() and torch.cuda.get_device_capability(device) >= _CAPABILITY


def channel_linear(
    rows: QuantizedRows, values: Tensor, scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return ``rows @ weight.T + bias`` of ``values`` (N, K) with ``scales`` (N, 1) float32.

    ``rows``: (T, K) with a scale each. ``bias``: (N,). Returns (T, N) in ``rows.dtype``.
    """
    # Products with a scale a row are written in bfloat16 alone.
    added = bias if bias is None else bias.to(torch.bfloat16)
    out = torch._scaled_mm(
        rows.values,
        values.t(),
        scale_a=rows.scales,
        scale_b=scales.t(),
        bias=added,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return out.to(rows.dtype)


@triton_on_gpu
def block_linear(
    rows: QuantizedRows, values: Tensor, scales: Tensor, bias: Tensor | None = None
) -> Tensor:
    """``channel_linear`` with ``scales`` (N / 128, K / 128), and those of rows (T, K / 128)."""
    out = rows.dequantized() @ dequantize(values, scales, torch.float32).t()
    return (out if bias is None else out + bias.float()).to(rows.dtype)
