"""From bytes of pixels to what a vision tower takes."""

from __future__ import annotations

import torch
from torch import Tensor


def normalize_image(pixels: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``pixels * scale + bias`` a channel, computed in float32.

    ``pixels``: (N, H, W, 3) uint8. ``scale`` and ``bias``: (3,) float32. Returns (N, 3, H, W) in
    ``dtype``, with the channels still innermost in memory.
    """
    width = pixels.shape[2]
    rows = pixels.flatten(2).float()  # whole rows: the innermost loop is then longer than 3
    rows = torch.addcmul(bias.repeat(width), rows, scale.repeat(width)).to(dtype)
    return rows.view(pixels.shape).permute(0, 3, 1, 2)
