"""Lines of pixels resized by a filter, in whole numbers as Pillow computes."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu

# A share of 1. 255 times the shares of any filter, those below 0 counted as above, fit 32 bits.
SHARE_BITS = 22


@triton_on_gpu
def resample(
    pixels: Tensor, first: Tensor, shares: Tensor, out: Tensor, color: Tensor | None = None
) -> Tensor:
    """Make ``count`` pixels of each line; ``out`` is filled and returned.

    ``pixels``: (channels, lines, length) uint8, with any strides. Pixel i of a resized line is the
    sum of those from ``first[i]`` on, each times its of ``shares[i]``, rounded half up and bounded.
    ``first``: (count,) int32; ``shares``: (count, taps) int32, ``2**SHARE_BITS`` of which are 1.
    ``color``: (channels,) int32, of what lies before and behind a line; without it shares of that
    must be 0. ``out``: (channels, lines, count) uint8, with any strides.
    """
    length = pixels.shape[2]
    total = torch.full(out.shape, 1 << (SHARE_BITS - 1), dtype=torch.int32, device=out.device)
    for tap in range(shares.shape[1]):
        place = first + tap
        values = pixels.index_select(2, place.clamp(0, length - 1)).int()
        if color is not None:
            beyond = (place < 0) | (place >= length)
            values = torch.where(beyond, color[:, None, None], values)
        total += values * shares[:, tap]
    return out.copy_((total >> SHARE_BITS).clamp_(0, 255))
