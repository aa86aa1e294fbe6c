"""Rows of activations in e4m3 with scales in float32, alone and behind what computes them.

e4m3 (Micikevicius et al. 2022, arXiv:2209.05433) has four bits of exponent, three of mantissa, no
infinity, and 448 as its largest number. Letters in shapes: T tokens, G groups of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlmbatch_kernels.activation import silu_and_mul
from vlmbatch_kernels.dispatch import triton_on_gpu
from vlmbatch_kernels.rms_norm import rms_norm_residual

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
MAX_SIZE = 32768  # of rows on a GPU: they have to fit the registers of one program
LEAST_MAX = 1e-10  # of a group: zeros have a scale as well, and dividing by it does not overflow


class QuantizedRows(NamedTuple):
    """``values`` (T, size) in e4m3 times ``scales`` (T, G) float32, each for ``size / G`` columns.

    ``dtype``: of what was quantized, and of products with it.
    """

    values: Tensor
    scales: Tensor
    dtype: torch.dtype

    @property
    def is_cuda(self) -> bool:
        return self.values.is_cuda

    def dequantized(self) -> Tensor:
        """(T, size) in float32."""
        groups = self.values.float().view(*self.scales.shape, -1)
        return (groups * self.scales[:, :, None]).view(self.values.shape)


def plain_quantized_rows(x: Tensor, group: int | None = None) -> QuantizedRows:
    """``quantize_rows`` in torch's own operations, on any device and of rows of any size."""
    groups = x.float().reshape(len(x), -1, group or x.shape[1])
    largest = groups.abs().amax(2).clamp_(min=LEAST_MAX)
    # By a tensor: CUDA divides by a number as it multiplies by its rounded reciprocal.
    scales = largest / largest.new_full((), E4M3_MAX)
    # A quotient may round to more than 448, which a conversion would make NaN.
    scaled = (groups / scales[:, :, None]).clamp_(-E4M3_MAX, E4M3_MAX)
    return QuantizedRows(scaled.view(x.shape).to(E4M3), scales, x.dtype)


@triton_on_gpu
def quantize_rows(x: Tensor, group: int | None = None) -> QuantizedRows:
    """The largest number of each ``group`` of columns, or of a row, becomes e4m3's largest.

    ``x``: (T, size), of which ``group`` is a divisor.
    """
    return plain_quantized_rows(x, group)


@triton_on_gpu
def rms_norm_residual_quantized(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, group: int | None = None
) -> tuple[QuantizedRows, Tensor]:
    """``rms_norm_residual``, whose normalised sum is quantized as ``quantize_rows`` does it."""
    normed, total = rms_norm_residual(x, residual, weight, eps)
    return quantize_rows(normed, group), total


@triton_on_gpu
def silu_and_mul_quantized(x: Tensor, group: int | None = None) -> QuantizedRows:
    """``silu_and_mul`` of (T, 2 * size), quantized as ``quantize_rows`` does it."""
    return quantize_rows(silu_and_mul(x), group)
