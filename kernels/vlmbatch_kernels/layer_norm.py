"""Layer normalisation (Ba et al. 2016) after a residual addition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu


@triton_on_gpu
def layer_norm_residual(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add a layer's output to the residual stream and normalise the sum.

    ``x`` and ``residual``: (..., hidden), neither of them changed; ``weight`` and ``bias``:
    (hidden,). Statistics are float32. Returns the normalised sum and the sum, shaped like ``x``.
    """
    residual = residual + x
    return F.layer_norm(residual, weight.shape, weight, bias, eps), residual
