"""Activations that take torch more than one pass over memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu


@triton_on_gpu
def silu_and_mul(x: Tensor) -> Tensor:
    """Gated activation of a fused gate-up projection (SwiGLU, Shazeer 2020).

    Multiplies the second half of each row by SiLU of the first: (T, 2I) to (T, I).
    """
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


@triton_on_gpu
def quick_gelu(x: Tensor) -> Tensor:
    """Return ``x * sigmoid(1.702 * x)`` (Hendrycks and Gimpel 2016), as in CLIP; any shape."""
    return x * torch.sigmoid(1.702 * x)
