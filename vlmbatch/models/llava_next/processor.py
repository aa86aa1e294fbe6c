"""Prompts and images of a LLaVA-NeXT or LLaVA-OneVision model, equal to transformers'. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.models.llava.processor import image_text
from vlmbatch.models.llava_next.canvas import canvas_size
from vlmbatch.models.llava_next.config import LlavaNextConfig
from vlmbatch.models.llava_next.image_processor import LlavaNextImageProcessor
from vlmbatch.models.prompt_processor import PromptProcessor
from vlmbatch.models.shrink import Shrink
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.types import FeatureImage, ImageGrid, ImageInput, PixelImage

_FEATURE_BYTES = 4  # of a number at most
# Tokens of an image that comes as features: more than any published model's images have.
_MAX_FEATURES = 16_384


class LlavaNextProcessor(PromptProcessor):
    """See ``Processor``. Features are stored as (tokens, C), as the decoder reads them."""

    images: LlavaNextImageProcessor | None

    def __init__(
        self,
        config: LlavaNextConfig,
        tokenizer: Tokenizer,
        images: LlavaNextImageProcessor | None,
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

    @property
    def largest_grid(self) -> ImageGrid:
        """See ``Processor``: no prompt holds an image of more tokens than the context."""
        if self.images is not None:
            return self.images.largest_grid
        return self.feature_grid((self._max_features, self.config.feature_size))

    def feature_grid(self, shape: tuple[int, ...]) -> ImageGrid:
        """See ``Processor``."""
        size = self.config.feature_size
        if len(shape) != 2 or shape[1] != size or shape[0] < 1:
            raise ValueError(f"shape {shape}, expected (tokens, {size})")
        tokens = shape[0]
        if tokens > self._max_features:
            raise ValueError(f"shape {shape}: above the limit of {self._max_features} tokens")
        return ImageGrid(1, tokens, tokens, num_bytes=_FEATURE_BYTES * tokens * size)

    def feature_shape(self, grid: ImageGrid) -> tuple[int, ...]:
        """(tokens, C)."""
        return grid.num_tokens, self.config.feature_size

    def largest_image(self) -> ImageInput:
        """See ``Processor``."""
        grid = self.largest_grid
        if self.images is None:
            features = np.zeros((grid.num_tokens, self.config.feature_size), np.float32)
            return FeatureImage(features, b"", grid)
        canvas = canvas_size(self.images.largest.tiles, self.config.vision.image_size)
        return PixelImage(np.zeros((*canvas, 3), np.uint8), b"", grid)

    @property
    def _max_features(self) -> int:
        return min(self.max_model_len, _MAX_FEATURES)


def load(
    folder: Path,
    config: LlavaNextConfig,
    prompt: PromptConfig,
    arguments: ImageArguments,
    max_model_len: int | None,
    *,
    tokenizer_folder: Path,
    image_processor_folder: Path,
) -> LlavaNextProcessor:
    """See ``load_processor`` of the families."""
    images = None
    if arguments.image_input_type == "pixel_values":
        shrink = Shrink.of(arguments.resolution)
        images = LlavaNextImageProcessor.load(image_processor_folder, config, shrink)
    tokenizer = Tokenizer.load(tokenizer_folder)
    return LlavaNextProcessor(config, tokenizer, images, prompt, arguments, max_model_len, folder)
