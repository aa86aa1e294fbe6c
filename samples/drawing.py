"""Renders scenes with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from objects import COLOURS, Background, Number, Shape
from PIL import Image, ImageDraw, ImageFont


def draw(
    size: tuple[int, int], background: Background, shapes: Sequence[Shape], number: Number | None
) -> Image.Image:
    """The picture: RGB, ``size`` (width, height) in pixels."""
    image = draw_background(background, size)
    side = math.sqrt(size[0] * size[1])
    pen = ImageDraw.Draw(image)
    for shape in shapes:
        _draw_shape(pen, shape, side)
    if number is not None:
        ink = (245, 245, 245) if background.is_dark else (15, 15, 15)
        centre = (number.box.x * side, number.box.y * side)
        font = font_of(round(number.font_size * side))
        pen.text(centre, str(number.value), fill=ink, font=font, anchor="mm")
    return image


def draw_background(background: Background, size: tuple[int, int]) -> Image.Image:
    """As a picture of ``size`` (width, height) in pixels."""
    image = Image.new("RGB", size, background.colour)
    if not background.noise:
        return image
    shape = (background.cells, background.cells, 3)
    rng = np.random.default_rng(background.noise_seed)
    cells = rng.integers(0, 2 * background.noise + 1, shape, dtype=np.uint8)
    noise = Image.fromarray(cells).resize(image.size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.int16) + np.asarray(noise) - background.noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _draw_shape(pen: ImageDraw.ImageDraw, shape: Shape, side: float) -> None:
    x, y, radius = shape.box.x * side, shape.box.y * side, shape.box.half_width * side
    fill = COLOURS[shape.colour]
    if shape.kind == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif shape.kind == "square":
        half = 0.88 * radius
        pen.rectangle((x - half, y - half, x + half, y + half), fill=fill)
    elif shape.kind == "triangle":
        base = y + 0.8 * radius
        pen.polygon([(x, y - radius), (x - radius, base), (x + radius, base)], fill=fill)
    else:
        points = []
        for corner in range(10):
            reach = radius if corner % 2 == 0 else 0.42 * radius
            angle = math.pi * corner / 5
            points.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
        pen.polygon(points, fill=fill)


@lru_cache(maxsize=256)
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
