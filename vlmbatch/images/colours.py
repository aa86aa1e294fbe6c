"""From Pillow's modes to true RGB: what a viewer on a white page would show."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFile

_WHITE = (255, 255, 255, 255)
Colour = int | tuple[int, ...] | bytes

# Pillow widens these to 8 bits, but leaves a PNG's transparent grey in the file's own depth.
_GREY_WIDENING = {"L;2": 85, "L;4": 17}


def transparent_colour(image: Image.Image) -> Colour | None:
    """The colour (or palette transparency) shown as see-through, in the loaded pixels' terms.

    To be asked before the image is loaded, while Pillow still knows the file's bit depth.
    """
    colour: Colour | None = image.info.get("transparency")
    if not isinstance(image, ImageFile.ImageFile) or image.format != "PNG" or not image.tile:
        return colour
    depth = image.tile[0].args
    if isinstance(colour, int) and isinstance(depth, str) and depth in _GREY_WIDENING:
        return colour * _GREY_WIDENING[depth]
    if isinstance(colour, tuple) and depth == "RGB;16B":
        return tuple(channel >> 8 for channel in colour)
    return colour


def to_rgb(image: Image.Image, transparent: Colour | None) -> Image.Image:
    """Convert a loaded image of any mode; see-through pixels become white.

    ``transparent``: as by ``transparent_colour``.
    """
    if image.mode.startswith("I"):
        return _grey_from_integers(image, transparent)
    if image.mode == "La":  # premultiplied, which converts to LA alone
        image = image.convert("LA")
    if transparent is not None:
        image.info["transparency"] = transparent
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, _WHITE)
        page.alpha_composite(image.convert("RGBA"))
        return page.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_from_integers(image: Image.Image, transparent: Colour | None) -> Image.Image:
    """16-bit grey, or integers of 32 bits, of which the values alone tell how many they use.

    Of 16 bits the high byte is taken, which is also what Pillow keeps of 16-bit colour: grey and
    colour agree.
    """
    values = np.asarray(image)
    most = values.max(initial=0)
    shift = 8 if most < 2**16 else 23
    if image.mode == "I" and most < 2**8:  # a mask, say, that was saved from integers
        shift = 0
    grey = (values.clip(min=0) >> shift).astype(np.uint8)
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
