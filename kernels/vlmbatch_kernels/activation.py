"""Gated activation of a fused gate-up projection (SwiGLU, Shazeer 2020)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_and_mul(x: Tensor) -> Tensor:
    """Multiply the second half of each row by SiLU of the first: (T, 2I) to (T, I)."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
