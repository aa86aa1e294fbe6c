"""Prompts and images of a LLaVA model, equal to transformers' processor. No torch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.errors import CheckpointError
from vlmbatch.models.llava.config import LlavaConfig, TowerConfig
from vlmbatch.models.llava.image_processor import LlavaImageProcessor
from vlmbatch.models.prompt_processor import PromptProcessor
from vlmbatch.models.prompt_text import IMAGE_PLACEHOLDER
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.types import FeatureImage, ImageGrid, ImageInput, PixelImage

_FEATURE_BYTES = 4  # of a number at most


class LlavaProcessor(PromptProcessor):
    """See ``Processor``. Every image takes as many tokens, whatever its size."""

    def __init__(
        self,
        config: LlavaConfig,
        tokenizer: Tokenizer,
        images: LlavaImageProcessor | None,
        prompt: PromptConfig,
        arguments: ImageArguments,
        max_model_len: int | None,
        template_path: Path,
    ) -> None:
        text = image_text(config, tokenizer)
        super().__init__(
            config, tokenizer, images, prompt, arguments, max_model_len, template_path, text
        )
        self.config = config
        side = config.vision.image_size // config.vision.patch_size
        num_bytes = _FEATURE_BYTES * math.prod(config.feature_shape)
        self._feature_grid = ImageGrid(side, side, config.image_feature_size, num_bytes)
        self._images = images

    @property
    def largest_grid(self) -> ImageGrid:
        """The grid of every image."""
        return self._feature_grid if self._images is None else self._images.largest_grid

    def feature_grid(self, shape: tuple[int, ...]) -> ImageGrid:
        """See ``Processor``; a dimension of 1 may come first."""
        expected = self.config.feature_shape
        if shape in (expected, (1, *expected)):
            return self._feature_grid
        hint = ""
        if shape[-2:] == (expected[0] + 1, expected[1]):
            hint = ": leave out the class token, which comes first"
        raise ValueError(f"shape {shape}, expected {expected} or {(1, *expected)}{hint}")

    def feature_shape(self, grid: ImageGrid) -> tuple[int, ...]:
        """(image_feature_size, C)."""
        return self.config.feature_shape

    def largest_image(self) -> ImageInput:
        """See ``Processor``."""
        if self._images is None:
            features = np.zeros(self.config.feature_shape, np.float32)
            return FeatureImage(features, b"", self._feature_grid)
        pixels = np.zeros((*self._images.output_size, 3), np.uint8)
        return PixelImage(pixels, b"", self._images.largest_grid)


def image_text(config: TowerConfig, tokenizer: Tokenizer) -> str | None:
    """The model's own image token; None where it is the placeholder of prompts."""
    own = tokenizer.token_text(config.image_token_id)
    return None if own == IMAGE_PLACEHOLDER else own


def load(
    folder: Path,
    config: LlavaConfig,
    prompt: PromptConfig,
    arguments: ImageArguments,
    max_model_len: int | None,
    *,
    tokenizer_folder: Path,
    image_processor_folder: Path,
) -> LlavaProcessor:
    """See ``load_processor`` of the families."""
    images = None
    if arguments.image_input_type == "pixel_values":
        images = LlavaImageProcessor.load(image_processor_folder, config)
        expected = (config.vision.image_size, config.vision.image_size)
        if images.output_size != expected:
            raise CheckpointError(
                f"{image_processor_folder}: the image processor makes images of "
                f"{images.output_size}, but the vision tower takes {expected}"
            )
    tokenizer = Tokenizer.load(tokenizer_folder)
    return LlavaProcessor(config, tokenizer, images, prompt, arguments, max_model_len, folder)
