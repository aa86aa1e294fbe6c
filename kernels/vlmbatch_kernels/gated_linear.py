"""The first half of a gated feed-forward layer: gate and up projections, and their product."""

from __future__ import annotations

from torch import Tensor

from vlmbatch_kernels.activation import silu_and_mul
from vlmbatch_kernels.dispatch import triton_on_gpu
from vlmbatch_kernels.linear import linear


@triton_on_gpu
def silu_gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``silu(x @ gate.T) * (x @ up.T)`` (SwiGLU, Shazeer 2020).

    ``x``: (T, in_features). ``weight``: (2 * size, in_features), the gate's rows before the up
    projection's; ``bias``: (2 * size,), added to the products. Both of these are rounded to the
    dtype of ``x``. Returns (T, size).
    """
    return silu_and_mul(linear(x, weight, bias))
