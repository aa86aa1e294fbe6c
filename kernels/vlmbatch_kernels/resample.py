"""Lines of pixels resized by a filter, of many images at once, in whole numbers as Pillow computes.

L: lines, N: pixels of a line, C: pixels of a resized line, T: pixels that one of these is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu

# A share of 1. 255 times the shares of any filter, those below 0 counted as above, fit 32 bits.
SHARE_BITS = 22


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of an image, which are to be resized alike.

    ``pixels``: (3, L, N) uint8, ``out``: (3, L, C) uint8, both with any strides. ``weights``: where
    among all weights theirs begin, (C,) first places and then (T, C) shares; ``taps``: T.
    ``color``: of what lies before and behind a line. ``by_words``: first places and ``taps`` are
    multiples of 4, and ``pixels`` has words.
    """

    pixels: Tensor
    out: Tensor
    weights: int
    taps: int
    color: tuple[int, int, int] = (0, 0, 0)
    by_words: bool = False


def has_words(pixels: Tensor) -> bool:
    """Whether lines of (3, L, N) uint8 are made of whole aligned words of four pixels."""
    starts = pixels.data_ptr(), pixels.shape[2], *pixels.stride()[:2]
    return pixels.stride(2) == 1 and all(start % 4 == 0 for start in starts)


@triton_on_gpu
def resample(weights: Tensor, passes: Sequence[Sequence[Lines]]) -> None:
    """Fill ``out`` of all lines, of which a pass may read what the passes before it wrote.

    Pixel i of a resized line is the sum of those from its first place on, each times its share,
    rounded half up and bounded. ``weights``: (any,) int32; ``2**SHARE_BITS`` of a share are 1.
    """
    for lines in passes:
        for each in lines:
            _resample(weights, each)


def _resample(weights: Tensor, lines: Lines) -> None:
    length, count = lines.pixels.shape[2], lines.out.shape[2]
    own = weights[lines.weights :][: (1 + lines.taps) * count].view(1 + lines.taps, count)
    color = own.new_tensor(lines.color)[:, None, None]
    total = own.new_full(lines.out.shape, 1 << (SHARE_BITS - 1))
    for tap in range(lines.taps):
        place = own[0] + tap
        values = lines.pixels.index_select(2, place.clamp(0, length - 1)).int()
        beyond = (place < 0) | (place >= length)
        total += values.where(~beyond, color) * own[1 + tap]
    lines.out.copy_((total >> SHARE_BITS).clamp_(0, 255))
