"""From bytes of pixels to the rows that a vision tower's patch embedding multiplies."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu


def patch_row_size(patch_size: int) -> int:
    """Numbers in a patch's row: three channels, rounded up to 8 as fast matrix products ask."""
    return -(-3 * patch_size**2 // 8) * 8


@triton_on_gpu
def normalize_patches(
    pixels: Tensor, scale: Tensor, bias: Tensor, patch_size: int, dtype: torch.dtype
) -> Tensor:
    """Return ``pixels * scale + bias`` a channel, computed in float32, cut into square patches.

    ``pixels``: (N, H, W, 3) uint8; what is left of H and W behind the last whole patch is dropped.
    ``scale`` and ``bias``: (3,) float32. Returns (N, patches, row) in ``dtype``, patches from left
    to right and top to bottom, a row laid out as (patch_size, patch_size, 3) with zeros up to
    ``patch_row_size``.
    """
    images, height, width, _ = pixels.shape
    down, across = height // patch_size, width // patch_size
    rows = pixels.flatten(2).float()  # whole rows: the innermost loop is then longer than 3
    rows = torch.addcmul(bias.repeat(width), rows, scale.repeat(width))
    line = 3 * patch_size
    whole = rows[:, : down * patch_size, : across * line]
    patches = whole.view(images, down, patch_size, across, line).transpose(2, 3)
    out = rows.new_zeros(images, down, across, patch_row_size(patch_size), dtype=dtype)
    out[..., : patch_size * line].view(patches.shape).copy_(patches)
    return out.flatten(1, 2)
