"""How much each pixel of a line counts for each pixel of the resized one: Pillow's filters.

A filter is stretched where an image is made smaller, so that it averages (antialiasing), and what
would lie beyond the edges is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor

_CUBIC = -0.5  # Keys' parameter


def _box(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x <= 0.5)).to(x.dtype)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _hamming(x: Tensor) -> Tensor:
    window = 0.54 + 0.46 * torch.cos(torch.pi * x)
    return torch.where(x.abs() < 1, torch.sinc(x) * window, 0.0)


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = _CUBIC * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where((x >= -3) & (x < 3), torch.sinc(x) * torch.sinc(x / 3), 0.0)


# With the distance from its middle at which each ends. Of NEAREST the nearest pixel counts alone.
FILTERS: dict[Image.Resampling, tuple[Callable[[Tensor], Tensor], float]] = {
    Image.Resampling.BOX: (_box, 0.5),
    Image.Resampling.BILINEAR: (_triangle, 1.0),
    Image.Resampling.HAMMING: (_hamming, 1.0),
    Image.Resampling.BICUBIC: (_cubic, 2.0),
    Image.Resampling.LANCZOS: (_lanczos, 3.0),
}


@lru_cache(maxsize=4)  # of photos of one camera, upright and on their side
def weights(
    length: int,
    start: float,
    stop: float,
    count: int,
    resample: Image.Resampling,
    device: torch.device,
) -> Tensor:
    """(count, length) float32: what stands between ``start`` and ``stop`` becomes ``count`` pixels.

    ``resample``: one of ``FILTERS``.
    """
    kernel, reach = FILTERS[resample]
    scale = (stop - start) / count
    stretch = max(scale, 1.0)
    places = torch.arange(count, dtype=torch.float64, device=device)
    middle = start + (places[:, None] + 0.5) * scale
    pixel = torch.arange(length, dtype=torch.float64, device=device)
    first = (middle - reach * stretch + 0.5).floor()
    end = (middle + reach * stretch + 0.5).floor()
    values = kernel((pixel - middle + 0.5) / stretch)
    values = values.masked_fill((pixel < first) | (pixel >= end), 0.0)
    return (values / values.sum(1, keepdim=True)).float()
