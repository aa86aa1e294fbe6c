"""How an image is cut into tiles, and what of them the decoder sees. No torch, no pixels.

LLaVA-NeXT's "anyres": the image is fitted into one of a few sizes, each so many tiles high and
wide, and centred; what its padding alone would fill is cut off again from the features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

# Before a feature map is scaled down, its side may exceed the limit's by this factor.
_TOLERANCE = 1.1


class Size(NamedTuple):
    """In pixels, tiles or features."""

    height: int
    width: int

    @property
    def area(self) -> int:
        return self.height * self.width


def best_fit(image: Size, candidates: Iterable[Size]) -> Size:
    """The candidate that shows most of the image's pixels, and of these wastes the fewest of its
    own; the first where several do."""

    def merit(candidate: Size) -> tuple[int, int]:
        scale = min(candidate.width / image.width, candidate.height / image.height)
        fitted = int(image.width * scale) * int(image.height * scale)
        shown = min(fitted, image.area)
        return shown, shown - candidate.area

    return max(candidates, key=merit)


def fit_within(image: Size, canvas: Size) -> Size:
    """The image's size, in its own shape, where it fills the canvas in one direction."""
    across, down = canvas.width / image.width, canvas.height / image.height
    if across < down:
        return Size(min(math.ceil(image.height * across), canvas.height), canvas.width)
    return Size(canvas.height, min(math.ceil(image.width * down), canvas.width))


def unpadded(image: Size, features: Size) -> Size:
    """What is left of a canvas's features without those of its padding, as many on either side.

    Nothing may be left of a strip that is thinner than a feature.
    """
    if image.width / image.height > features.width / features.height:
        covered = int(round(image.height * (features.width / image.width), 7))
        padding = (features.height - covered) // 2
        return Size(features.height - 2 * padding, features.width)
    covered = int(round(image.width * (features.height / image.height), 7))
    padding = (features.width - covered) // 2
    return Size(features.height, features.width - 2 * padding)


def scaled_down(features: Size, max_features: int | None) -> Size:
    """The size of a feature map once it is small enough: at most about ``max_features``."""
    if max_features is None:
        return features
    ratio = math.sqrt(features.area / max_features)
    if ratio <= _TOLERANCE:
        return features
    return Size(int(features.height // ratio), int(features.width // ratio))


def num_tokens(kept: Size, side: int, max_features: int | None) -> int:
    """Tokens of an image: the whole in one tile of ``side`` squared features, then the rows of
    ``kept`` features of its tiles, scaled down, each with the end of its line."""
    rows, columns = scaled_down(kept, max_features)
    return side**2 + rows * (columns + 1)


def all_kept(features: Size) -> Iterable[Size]:
    """What ``unpadded`` may leave of a canvas."""
    yield from (Size(rows, features.width) for rows in range(features.height, -1, -2))
    yield from (Size(features.height, columns) for columns in range(features.width, -1, -2))
