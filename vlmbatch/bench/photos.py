"""Photo-like pictures, each from its own seed: as JPEGs they cost what photographs cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_GRAIN = 7.5  # standard deviation of the finest noise: makes about 2 bits a pixel of a JPEG
_TILE = 1024
_NUM_SHAPES = 8


def make_photo(size: tuple[int, int], seed: Sequence[int]) -> Image.Image:
    """An RGB image of ``size`` (width, height): smooth light, shapes with edges, grain."""
    rng = np.random.default_rng(seed)
    image = _light(rng, size)
    _draw_shapes(rng, image)
    pixels = np.asarray(image).astype(np.int16)
    pixels += _grain(rng, size)[:, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def _light(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Colours that change slowly: two grids of random ones, enlarged and mixed."""
    coarse, fine = (
        Image.fromarray(rng.integers(0, 256, (*cells, 3), np.uint8)).resize(
            size, Image.Resampling.BILINEAR
        )
        for cells in ((3, 4), (12, 16))
    )
    return Image.blend(coarse, fine, 0.3)


def _draw_shapes(rng: np.random.Generator, image: Image.Image) -> None:
    draw = ImageDraw.Draw(image)
    for kind in rng.integers(0, 3, _NUM_SHAPES):
        centre = rng.random(2) * image.size
        radii = (0.03 + 0.15 * rng.random(2)) * min(image.size)
        box = [*(centre - radii), *(centre + radii)]
        colour = tuple(map(int, rng.integers(0, 256, 3)))
        if kind == 0:
            draw.ellipse(box, fill=colour)
        elif kind == 1:
            draw.rectangle(box, fill=colour)
        else:
            draw.line(box, fill=colour, width=max(1, min(image.size) // 100))


@cache
def _noise_tile() -> NDArray[np.int16]:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((_TILE, _TILE), np.float32) * _GRAIN).astype(np.int16)


def _grain(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.int16]:
    """Noise (height, width): one tile, repeated from a random place on. Fresh noise is slow."""
    width, height = size
    rows, columns = (
        np.arange(start, start + length) % _TILE
        for start, length in zip(rng.integers(0, _TILE, 2), (height, width), strict=True)
    )
    grain: NDArray[np.int16] = _noise_tile()[rows][:, columns]
    return grain
