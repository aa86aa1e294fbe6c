from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from made_up_family.config import MadeUpConfig
from vlmbatch.config import ImageArguments, ImageResolution, PromptConfig
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.models.device_image import RgbImage
from vlmbatch.models.image_hash import pixel_image
from vlmbatch.models.processor import ImageProcessor, Resized
from vlmbatch.models.prompt_processor import PromptProcessor
from vlmbatch.models.reduced import Reduced, box_of
from vlmbatch.models.shrink import NO_SHRINK, Shrink
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.types import FeatureImage, ImageGrid, ImageInput, ImageSpan, PixelImage

PATCH = 4
_STEP = (20, 16)  # pixels of the file to a patch: an image on its side takes other tokens
_MAX_RATIO = 40


@dataclass(frozen=True, slots=True)
class MadeUpImages(ImageProcessor):
    """An ``ImageProcessor``: as many patches as the image is large."""

    max_side: int
    shrink: Shrink = NO_SHRINK

    @property
    def fingerprint(self) -> str:
        return f"made up {self.shrink}"

    @property
    def largest_grid(self) -> ImageGrid:
        return self._grid(self.max_side, self.max_side)

    def at(self, resolution: ImageResolution | None, row_images: int = 1) -> MadeUpImages:
        return replace(self, shrink=self.shrink.at(resolution))

    def grid(self, height: int, width: int) -> ImageGrid:
        height, width = self.shrink.size(height, width)
        if max(height, width) > _MAX_RATIO * min(height, width):
            raise RowError(ErrorCode.IMAGE_TOO_LARGE, f"{width} x {height}: too long a strip")
        sides = (height // _STEP[0], width // _STEP[1])
        return self._grid(*(min(max(1, side), self.max_side) for side in sides))

    def needed(self, height: int, width: int) -> tuple[int, int]:
        grid = self.grid(height, width)
        return self.shrink.needed(height, width, (grid.height * PATCH, grid.width * PATCH))

    def resize(self, image: RgbImage, reduced: Reduced | None = None) -> Resized:
        whole = reduced or image
        grid = self.grid(whole.height, whole.width)
        size = (grid.width * PATCH, grid.height * PATCH)
        image, reduced = self.shrink.apply_to(image, reduced)
        image = image.resize(size, Image.Resampling.BOX, box_of(reduced))
        return Resized((image,), whole.height, whole.width)

    def finish(self, resized: Resized) -> PixelImage:
        (image,) = resized.images
        grid = self.grid(resized.height, resized.width)
        return pixel_image(np.array(image, order="C"), grid, self.fingerprint)

    def _grid(self, height: int, width: int) -> ImageGrid:
        return ImageGrid(height, width, height * width, num_bytes=3 * height * width * PATCH**2)


class MadeUpProcessor(PromptProcessor):
    """A ``Processor``; features are stored as (height, width, C)."""

    def __init__(
        self,
        config: MadeUpConfig,
        tokenizer: Tokenizer,
        images: MadeUpImages | None,
        prompt: PromptConfig,
        arguments: ImageArguments,
        max_model_len: int | None,
        template_path: Path,
    ) -> None:
        super().__init__(config, tokenizer, images, prompt, arguments, max_model_len, template_path)
        self.config = config

    @property
    def largest_grid(self) -> ImageGrid:
        side = self.config.max_side
        return self.feature_grid((side, side, self.config.feature_size))

    def feature_grid(self, shape: tuple[int, ...]) -> ImageGrid:
        *sides, size = shape or (0,)
        if len(sides) != 2 or not all(0 < side <= self.config.max_side for side in sides):
            raise ValueError(f"shape {shape}, expected (height, width, {self.config.feature_size})")
        if size != self.config.feature_size:
            raise ValueError(f"{size} numbers a feature, expected {self.config.feature_size}")
        height, width = sides
        return ImageGrid(height, width, height * width, num_bytes=4 * height * width * size)

    def feature_shape(self, grid: ImageGrid) -> tuple[int, ...]:
        return grid.height, grid.width, self.config.feature_size

    def largest_image(self) -> ImageInput:
        side = self.config.max_side
        if self.images is None:
            features = np.zeros((side * side, self.config.feature_size), np.float32)
            return FeatureImage(features, b"", self.largest_grid)
        pixels = np.zeros((side * PATCH, side * PATCH, 3), np.uint8)
        return PixelImage(pixels, b"", self.images.largest_grid)

    def _positions(
        self, token_ids: list[int], spans: Sequence[ImageSpan], grids: Sequence[ImageGrid]
    ) -> tuple[NDArray[np.int64] | None, int | None]:
        """Text counts in all rows; an image stands still in time and spreads over the others."""
        if not spans:
            return None, None
        positions = np.zeros((3, len(token_ids)), np.int64)
        position = end = 0
        for span in spans:
            text = span.start - end
            positions[:, end : span.start] = position + np.arange(text)
            position += text
            grid = grids[span.image]
            index = span.offset + np.arange(span.length)
            rows = np.stack((0 * index, index // grid.width, index % grid.width))
            end = span.start + span.length
            positions[:, span.start : end] = position + rows
            position += max(grid.height, grid.width)
        text = len(token_ids) - end
        positions[:, end:] = position + np.arange(text)
        return positions, position + text


def load(
    folder: Path,
    config: MadeUpConfig,
    prompt: PromptConfig,
    arguments: ImageArguments,
    max_model_len: int | None,
    *,
    tokenizer_folder: Path,
    image_processor_folder: Path,
) -> MadeUpProcessor:
    takes_pixels = arguments.image_input_type == "pixel_values"
    shrink = Shrink.of(arguments.resolution)
    images = MadeUpImages(config.max_side, shrink) if takes_pixels else None
    tokenizer = Tokenizer.load(tokenizer_folder)
    return MadeUpProcessor(config, tokenizer, images, prompt, arguments, max_model_len, folder)
