"""Prompts and images of a Qwen-VL model, equal to transformers' processors. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.errors import CheckpointError, ErrorCode, RowError
from vlmbatch.models.prompt_processor import PromptProcessor
from vlmbatch.models.prompt_text import IMAGE_PLACEHOLDER, context_length
from vlmbatch.models.qwen_vl.config import QwenVLConfig
from vlmbatch.models.qwen_vl.image_processor import QwenImageProcessor
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.types import FeatureImage, ImageGrid, ImageInput, ImageSpan, PixelImage

_FEATURE_BYTES = 4  # of a number at most
# Tokens of an image that comes as features: as many as those that published processors make.
_MAX_FEATURES = 16_384


class QwenVLProcessor(PromptProcessor):
    """See ``Processor``. Features are stored as (height, width, C), in tokens."""

    def __init__(
        self,
        config: QwenVLConfig,
        tokenizer: Tokenizer,
        images: QwenImageProcessor | None,
        prompt: PromptConfig,
        arguments: ImageArguments,
        max_model_len: int | None,
        template_path: Path,
    ) -> None:
        image_text = _image_text(config, tokenizer)
        super().__init__(
            config, tokenizer, images, prompt, arguments, max_model_len, template_path, image_text
        )
        self.config = config

    @property
    def largest_grid(self) -> ImageGrid:
        """See ``Processor``: no prompt holds an image of more tokens than the context."""
        if self.images is not None:
            return self.images.largest_grid
        return self.feature_grid((1, self._max_features, self.config.feature_size))

    def feature_grid(self, shape: tuple[int, ...]) -> ImageGrid:
        """See ``Processor``."""
        size = self.config.feature_size
        if len(shape) != 3 or shape[2] != size or min(shape) < 1:
            raise ValueError(f"shape {shape}, expected (height, width, {size}) in tokens")
        height, width, _ = shape
        if height * width > self._max_features:
            raise ValueError(
                f"shape {shape}: {height * width} tokens, above the limit of {self._max_features}"
            )
        num_bytes = _FEATURE_BYTES * height * width * size
        return ImageGrid(height, width, height * width, num_bytes)

    def feature_shape(self, grid: ImageGrid) -> tuple[int, ...]:
        """(height, width, C)."""
        return grid.height, grid.width, self.config.feature_size

    def largest_image(self) -> ImageInput:
        """See ``Processor``."""
        grid = self.largest_grid
        if self.images is None:
            features = np.zeros((grid.num_tokens, self.config.feature_size), np.float32)
            return FeatureImage(features, b"", grid)
        factor = self.config.vision.factor
        pixels = np.zeros((grid.height * factor, grid.width * factor, 3), np.uint8)
        return PixelImage(pixels, b"", grid)

    @property
    def _max_features(self) -> int:
        return min(self.max_model_len, _MAX_FEATURES)

    def _positions(
        self, token_ids: list[int], spans: Sequence[ImageSpan], grids: Sequence[ImageGrid]
    ) -> tuple[NDArray[np.int64] | None, int | None]:
        """Text counts in all three rows; an image is one moment that spreads over height and width
        (Qwen2-VL, arXiv:2409.12191, section 2.1)."""
        if not spans:
            return None, None
        positions = np.zeros((3, len(token_ids)), np.int64)
        position = end = 0
        for span in spans:
            grid = grids[span.image]
            if span.length != grid.num_tokens:
                raise RowError(
                    ErrorCode.IMAGE_TOKEN_MISMATCH,
                    f"image {span.image + 1}: expected its {grid.num_tokens} image tokens in one "
                    f"run, found {span.length} before other tokens",
                )
            text = span.start - end
            positions[:, end : span.start] = position + np.arange(text)
            position += text
            end = span.start + span.length
            places = np.indices((1, grid.height, grid.width)).reshape(3, -1)
            positions[:, span.start : end] = position + places
            position += max(grid.height, grid.width)
        text = len(token_ids) - end
        positions[:, end:] = position + np.arange(text)
        return positions, position + text


def _image_text(config: QwenVLConfig, tokenizer: Tokenizer) -> str | None:
    """What the model's chat template writes for an image, less repetition of its one image token.

    None where the model's own image token is the placeholder of prompts.

    Raises:
        CheckpointError: the tokenizer lacks the tokens around an image.
    """
    image = tokenizer.token_text(config.image_token_id)
    if image == IMAGE_PLACEHOLDER or image is None:  # the latter is found out next
        return None
    around = []
    for name in ("vision_start_token_id", "vision_end_token_id"):
        text = tokenizer.token_text(getattr(config, name))
        if text is None:
            raise CheckpointError(
                f"the tokenizer has no token of the model's {name} {getattr(config, name)}"
            )
        around.append(text)
    start, end = around
    return f"{start}{image}{end}"


def load(
    folder: Path,
    config: QwenVLConfig,
    prompt: PromptConfig,
    arguments: ImageArguments,
    max_model_len: int | None,
    *,
    tokenizer_folder: Path,
    image_processor_folder: Path,
) -> QwenVLProcessor:
    """See ``load_processor`` of the families."""
    images = None
    if arguments.image_input_type == "pixel_values":
        images = QwenImageProcessor.load(
            image_processor_folder,
            config.vision,
            arguments.resolution,
            context_length(config.text.max_position_embeddings, max_model_len) - 1,
        )
    tokenizer = Tokenizer.load(tokenizer_folder)
    return QwenVLProcessor(config, tokenizer, images, prompt, arguments, max_model_len, folder)
