"""Page-like pictures, each from its own seed: printed words on paper, as a scanner sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
_MARGIN = 0.09  # of the width
_LINES = 52  # of text and of space between paragraphs
_LEADING = 1.35  # height of a line over that of its letters
_PAPER, _INK = 247, 24
_GRAIN = 2.5  # standard deviation of what a scanner adds


def make_page(size: tuple[int, int], seed: Sequence[int]) -> Image.Image:
    """An RGB page of ``size`` (width, height): paragraphs of made-up words."""
    rng = np.random.default_rng(seed)
    width, height = size
    page = Image.new("L", size, _PAPER)
    draw = ImageDraw.Draw(page)
    margin = int(_MARGIN * width)
    line_height = (height - 2 * margin) / _LINES
    font = ImageFont.load_default(line_height / _LEADING)
    for line in range(_LINES):
        kind = rng.random()
        if kind < 0.08:
            continue  # between paragraphs
        end = margin + (width - 2 * margin) * (rng.uniform(0.2, 0.8) if kind < 0.2 else 1.0)
        draw.text(
            (margin, margin + line * line_height), _words(rng, font, end - margin), _INK, font
        )
    grain = rng.standard_normal((height, width), np.float32) * _GRAIN
    pixels = np.clip(np.asarray(page) + grain, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB")


def _words(
    rng: np.random.Generator, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, length: float
) -> str:
    """Words that fill a line of so many pixels."""
    line = ""
    while True:
        word = "".join(rng.choice(_LETTERS, rng.integers(2, 11)))
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) > length:
            return line
        line = longer
