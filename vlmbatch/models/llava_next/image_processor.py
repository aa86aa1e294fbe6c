"""Images to tiles of a tower's size, equal to Hugging Face's Pillow-based processors.

Resizing, padding and cutting leave uint8; rescaling and normalizing are ``pixels * scale + bias``,
and happen on the engine's device.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vlmbatch.config import ImageResolution
from vlmbatch.models.device_image import RgbImage
from vlmbatch.models.image_hash import pixel_image
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.llava.image_processor import parse_size
from vlmbatch.models.llava.square import pad_to_square, square_side
from vlmbatch.models.llava_next.canvas import canvas_size, join
from vlmbatch.models.llava_next.config import LlavaNextConfig, parse_pinpoints
from vlmbatch.models.llava_next.tiling import (
    Size,
    all_kept,
    best_fit,
    fit_within,
    num_tokens,
    unpadded,
)
from vlmbatch.models.preprocessor_config import (
    Normalization,
    load_preprocessor_config,
    parse_normalization,
    parse_pad_color,
    parse_resample,
)
from vlmbatch.models.processor import ImageProcessor, Resized
from vlmbatch.models.reduced import Reduced, box_of
from vlmbatch.models.shrink import NO_SHRINK, Shrink
from vlmbatch.types import ImageGrid, PixelImage

_KINDS = {
    "llava_next": "LlavaNextImageProcessor",
    "llava_onevision": "LlavaOnevisionImageProcessor",
}
_DEFAULT_SIDES = {"llava_next": 224, "llava_onevision": 384}


class Largest(NamedTuple):
    """``grid``: the most tokens and the most bytes of any image; ``tiles``: of most tokens."""

    grid: ImageGrid
    tiles: Size


@dataclass(frozen=True, slots=True)
class SquareImageProcessor(ImageProcessor):
    """An image as one tile alone, padded to a square of one colour. An ``ImageProcessor``."""

    tile: int
    patches: int
    resample: Image.Resampling
    color: tuple[int, int, int]
    normalization: Normalization
    shrink: Shrink
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", _fingerprint(self))

    @property
    def largest_grid(self) -> ImageGrid:
        """The grid of every image: no tiles; the features of one, and the end of a line."""
        return ImageGrid(0, 0, self.patches**2 + 1, num_bytes=3 * self.tile**2)

    def at(self, resolution: ImageResolution | None, row_images: int = 1) -> SquareImageProcessor:
        """See ``ImageProcessor``."""
        return self if resolution is None else replace(self, shrink=self.shrink.at(resolution))

    def grid(self, height: int, width: int) -> ImageGrid:
        """See ``ImageProcessor``.

        Raises:
            RowError: padding a long image to a square would take too much memory.
        """
        square_side(*self.shrink.size(height, width))
        return self.largest_grid

    def needed(self, height: int, width: int) -> tuple[int, int]:
        """See ``ImageProcessor``."""
        first = self.shrink.size(height, width)
        side = square_side(*first)
        down, across = (-(-self.tile * length // side) for length in first)
        return self.shrink.needed(height, width, (down, across))

    def resize(self, image: RgbImage, reduced: Reduced | None = None) -> Resized:
        """See ``ImageProcessor``."""
        assert image.mode == "RGB", image.mode
        whole = reduced or image
        image, reduced = self.shrink.apply_to(image, reduced)
        square, reduced = pad_to_square(image, self.color, reduced)
        square = square.resize((self.tile, self.tile), self.resample, box_of(reduced))
        return Resized((square,), whole.height, whole.width)

    def finish(self, resized: Resized) -> PixelImage:
        """See ``ImageProcessor``."""
        (square,) = resized.images
        return pixel_image(np.array(square, order="C"), self.largest_grid, self.fingerprint)


@dataclass(frozen=True, slots=True)
class LlavaNextImageProcessor(ImageProcessor):
    """How one checkpoint prepares its images. An ``ImageProcessor``.

    An image becomes one tile of ``tile`` pixels squared that shows all of it, distorted, and the
    tiles of the best-fitting of ``pinpoints`` (pixels), undistorted and centred on black. A side of
    a tile has ``patches`` features; ``max_features``: see ``scaled_down``. ``several``: prepares
    the images of rows that show more than one, where that is done otherwise.

    Grids count the features of the tiles without those of padding, before they are scaled down.
    ``shrink`` comes first.
    """

    tile: int
    patches: int
    pinpoints: tuple[Size, ...]
    max_features: int | None
    resample: Image.Resampling
    normalization: Normalization
    shrink: Shrink
    several: SquareImageProcessor | None
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", _fingerprint(self))

    @property
    def largest(self) -> Largest:
        return _largest(self.tile, self.patches, self.pinpoints, self.max_features)

    @property
    def largest_grid(self) -> ImageGrid:
        """See ``ImageProcessor``: the most tokens and the most bytes may be two images'."""
        return self.largest.grid

    @classmethod
    def load(
        cls, folder: Path, config: LlavaNextConfig, shrink: Shrink = NO_SHRINK
    ) -> LlavaNextImageProcessor:
        """Read ``processor_config.json`` or ``preprocessor_config.json`` for a model.

        Raises:
            CheckpointError: neither is there, or a parameter is unsupported or contradicts the
                model.
        """
        return _parse(load_preprocessor_config(folder), config, shrink)

    def at(
        self, resolution: ImageResolution | None, row_images: int = 1
    ) -> LlavaNextImageProcessor | SquareImageProcessor:
        """See ``ImageProcessor``."""
        if self.several is not None and row_images > 1:
            return self.several.at(resolution)
        return self if resolution is None else replace(self, shrink=self.shrink.at(resolution))

    def grid(self, height: int, width: int) -> ImageGrid:
        """See ``ImageProcessor``: images of every size have one."""
        image = Size(*self.shrink.size(height, width))
        canvas = best_fit(image, self.pinpoints)
        tiles = Size(canvas.height // self.tile, canvas.width // self.tile)
        features = Size(tiles.height * self.patches, tiles.width * self.patches)
        kept = unpadded(image, features)
        tokens = num_tokens(kept, self.patches, self.max_features)
        return ImageGrid(*kept, tokens, num_bytes=3 * canvas_size(tiles, self.tile).area)

    def needed(self, height: int, width: int) -> tuple[int, int]:
        """See ``ImageProcessor``: for the tiles, and for the whole in one of them."""
        _, fitted = self._fitted(height, width)
        target = max(fitted.height, self.tile), max(fitted.width, self.tile)
        return self.shrink.needed(height, width, target)

    def resize(self, image: RgbImage, reduced: Reduced | None = None) -> Resized:
        """See ``ImageProcessor``: the whole in one tile, and what is cut into the others."""
        assert image.mode == "RGB", image.mode
        whole = reduced or image
        _, fitted = self._fitted(whole.height, whole.width)
        image, reduced = self.shrink.apply_to(image, reduced)
        sizes = (self.tile, self.tile), (fitted.width, fitted.height)
        images = tuple(image.resize(size, self.resample, box_of(reduced)) for size in sizes)
        return Resized(images, whole.height, whole.width)

    def finish(self, resized: Resized) -> PixelImage:
        """See ``ImageProcessor``."""
        base, tiles = resized.images
        canvas, fitted = self._fitted(resized.height, resized.width)
        tiled = np.zeros((canvas.height, canvas.width, 3), np.uint8)
        top, left = (canvas.height - fitted.height) // 2, (canvas.width - fitted.width) // 2
        tiled[top : top + fitted.height, left : left + fitted.width] = np.asarray(tiles)
        pixels = join(np.asarray(base), tiled)
        grid = self.grid(resized.height, resized.width)
        return pixel_image(pixels, grid, self.fingerprint)

    def _fitted(self, height: int, width: int) -> tuple[Size, Size]:
        """The canvas for an image of this size, and the size that it has there."""
        first = Size(*self.shrink.size(height, width))
        canvas = best_fit(first, self.pinpoints)
        return canvas, fit_within(first, canvas)


@lru_cache(maxsize=4)  # a row may have a processor of its own, of the same tiles
def _largest(
    tile: int, patches: int, pinpoints: tuple[Size, ...], max_features: int | None
) -> Largest:
    """Over all that any image may leave of the tiles."""
    every_tiles = [Size(canvas.height // tile, canvas.width // tile) for canvas in pinpoints]
    tokens, kept, tiles = max(
        (num_tokens(kept, patches, max_features), kept, tiles)
        for tiles in every_tiles
        for kept in all_kept(Size(tiles.height * patches, tiles.width * patches))
    )
    most_pixels = max(canvas_size(tiles, tile).area for tiles in every_tiles)
    return Largest(ImageGrid(*kept, tokens, num_bytes=3 * most_pixels), tiles)


def _fingerprint(processor: SquareImageProcessor | LlavaNextImageProcessor) -> str:
    """A digest of all other fields of a processor."""
    names = [each.name for each in fields(processor) if each.name != "fingerprint"]
    values = tuple(getattr(processor, name) for name in names)
    return hashlib.blake2b(repr(values).encode()).hexdigest()


def _parse(given: JsonFields, config: LlavaNextConfig, shrink: Shrink) -> LlavaNextImageProcessor:
    kind = config.model_type
    name = "image_processor_type"
    if given.string(name, _KINDS[kind]).removesuffix("Fast").removesuffix("Pil") != _KINDS[kind]:
        raise given.error(name, _KINDS[kind])
    if not given.boolean("do_resize", True):
        raise given.error("do_resize", "true")
    _check_sides(given, config)
    pinpoints = parse_pinpoints(given, kind, config.vision)
    if sorted(pinpoints) != sorted(config.pinpoints):
        shown = [list(size) for size in config.pinpoints]
        raise given.error("image_grid_pinpoints", f"the model's {shown}")
    tile, patches, filter_ = config.vision.image_size, config.patches, parse_resample(given)
    normalization = parse_normalization(given)
    several = None
    if kind == "llava_onevision":
        color = parse_pad_color(given)
        several = SquareImageProcessor(tile, patches, filter_, color, normalization, shrink)
    return LlavaNextImageProcessor(
        tile, patches, pinpoints, config.max_features, filter_, normalization, shrink, several
    )


def _check_sides(given: JsonFields, config: LlavaNextConfig) -> None:
    """Tiles have the tower's size, whether they are resized, cropped or neither.

    Raises:
        CheckpointError: ``size`` or ``crop_size`` is another.
    """
    side, default = config.vision.image_size, _DEFAULT_SIDES[config.model_type]
    for name in ("size", "crop_size"):
        if name == "crop_size" and config.model_type == "llava_onevision" and name not in given:
            continue
        if parse_size(given, name, default) not in (side, (side, side)):
            raise given.error(name, f"the vision tower's {side} pixels")
