"""Root mean square normalisation (Zhang and Sennrich 2019), alone or after a residual addition."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu


@triton_on_gpu
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row to unit root mean square, then by ``weight``.

    ``x``: (T, hidden); ``weight``: (hidden,). Returns (T, hidden) in the dtype of ``x``. Statistics
    are float32 and the row is rounded to its own dtype before the weight, as in Llama.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
    return (wide * scale).to(x.dtype).mul_(weight)


@triton_on_gpu
def rms_norm_residual(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add a layer's output to the residual stream and normalise the sum.

    ``x`` and ``residual``: (T, hidden), neither of them changed. Returns the normalised sum and
    the sum, both (T, hidden).
    """
    residual = residual + x
    return rms_norm(residual, weight, eps), residual
