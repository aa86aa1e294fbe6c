"""Images in the middle of squares of one colour, which some checkpoints were trained on."""

from __future__ import annotations

import math

from PIL import Image

from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.models.device_image import RgbImage
from vlmbatch.models.reduced import Reduced

_MAX_PIXELS = 2**28


def pad_to_square(
    image: RgbImage, color: tuple[int, int, int], reduced: Reduced | None = None
) -> tuple[RgbImage, Reduced | None]:
    """Surround an image with one colour, so that it stands in the middle of a square.

    Of a reduced image the square is, in its pixels, where it would be among the file's.

    Raises:
        RowError: see ``square_side``.
    """
    whole = reduced or image
    side = square_side(whole.height, whole.width)
    x, y = (side - whole.width) // 2, (side - whole.height) // 2
    if not isinstance(image, Image.Image):
        assert reduced is None, "images on a device are whole"
        return image.on_square(side, (x, y), color), None
    if reduced is None:
        square = Image.new("RGB", (side, side), color)
        square.paste(image, (x, y))
        return square, None
    scale, (left, top, *_) = reduced.scale, reduced.box
    length = side * scale
    column, row = math.ceil(x * scale), math.ceil(y * scale)
    page = Image.new("RGB", (math.ceil(length) + 2,) * 2, color)
    page.paste(image, (column, row))
    left, top = left + column - x * scale, top + row - y * scale
    return page, Reduced(side, side, (left, top, left + length, top + length))


def square_side(height: int, width: int) -> int:
    """The side of the square around an image.

    Raises:
        RowError: the square would take too much memory.
    """
    side = max(height, width)
    if side * side > _MAX_PIXELS:
        raise RowError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"{width} x {height} pixels: the model pads images to squares, and "
            f"{side} x {side} is above the limit of {_MAX_PIXELS} pixels",
        )
    return side
