"""How much each pixel of a line counts for each pixel of the resized one: Pillow's filters.

A filter is stretched where an image is made smaller, so that it averages (antialiasing), and what
would lie beyond the edges is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from vlmbatch_kernels.resample import SHARE_BITS

_CUBIC = -0.5  # Keys' parameter

Floats = NDArray[np.float64]


def _box(x: Floats) -> Floats:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _triangle(x: Floats) -> Floats:
    triangle: Floats = np.maximum(1 - np.abs(x), 0)
    return triangle


def _hamming(x: Floats) -> Floats:
    most, least = (float(np.float32(value)) for value in (0.54, 0.46))  # as Pillow has them
    return np.where(np.abs(x) < 1, np.sinc(x) * (most + least * np.cos(np.pi * x)), 0)


def _cubic(x: Floats) -> Floats:
    x = np.abs(x)
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = _CUBIC * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: Floats) -> Floats:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0)


# With the distance from its middle at which each ends. Of NEAREST the nearest pixel counts alone.
FILTERS: dict[Image.Resampling, tuple[Callable[[Floats], Floats], float]] = {
    Image.Resampling.BOX: (_box, 0.5),
    Image.Resampling.BILINEAR: (_triangle, 1.0),
    Image.Resampling.HAMMING: (_hamming, 1.0),
    Image.Resampling.BICUBIC: (_cubic, 2.0),
    Image.Resampling.LANCZOS: (_lanczos, 3.0),
}


@dataclass(frozen=True, slots=True)
class Shares:
    """Of each pixel of a resized line: where those begin that it is made of, and their shares.

    ``first``: (count,) int32. ``shares``: (count, taps) int32, ``2**SHARE_BITS`` together but for
    rounding; none of what lies outside of the line.
    """

    first: NDArray[np.int32]
    shares: NDArray[np.int32]


def shares_of(
    length: int, start: float, stop: float, count: int, resample: Image.Resampling
) -> Shares:
    """What stands between ``start`` and ``stop`` of a line of ``length`` becomes ``count`` pixels.

    ``resample``: one of ``FILTERS``.
    """
    kernel, reach = FILTERS[resample]
    begin = np.float32(start)  # as Pillow has it, unlike what follows
    scale = float(np.float32(stop) - begin) / count
    stretch = max(scale, 1.0)
    middle = float(begin) + (np.arange(count) + 0.5) * scale
    first = np.maximum(np.floor(middle - reach * stretch + 0.5), 0).astype(np.int32)
    end = np.minimum(np.floor(middle + reach * stretch + 0.5), length)
    taps = int((end - first).max())
    pixel = first[:, None] + np.arange(taps)
    values = kernel((pixel - middle[:, None] + 0.5) / stretch)
    values[pixel >= end[:, None]] = 0
    values /= values.sum(1, keepdims=True)
    whole = np.trunc(values * 2**SHARE_BITS + np.copysign(0.5, values))
    return Shares(first, np.ascontiguousarray(whole.astype(np.int32)))
