"""Rows to what a checkpoint's own class in transformers takes, by the checkpoint's own processor.

Nothing is known of a prompt's exact length, nor of what the processor makes of an image, before it
has seen both: ``tokenize`` and ``place`` check what can be known without it, ``encode`` the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from vlmbatch.config import ImageLimits, ImageResolution, PromptConfig
from vlmbatch.errors import CheckpointError, ErrorCode, RowError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.hf.images import UprightImages
from vlmbatch.hf.library import shown
from vlmbatch.hf.library_processor import ROW_FAILURES, load_library_processor
from vlmbatch.hf.placeholder import Placeholder, find_placeholder
from vlmbatch.models.image_tokens import placeholder_mismatch
from vlmbatch.models.processor import EncodedPrompt, Tokens
from vlmbatch.models.prompt_text import IMAGE_PLACEHOLDER, PromptText
from vlmbatch.models.shrink import Shrink
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.types import ImageGrid, ImageInput, PixelImage, ProcessedInputs, Row


@dataclass(frozen=True, slots=True)
class RenderedTokens(Tokens):
    """``token_ids``: of the text, whose images are not expanded: a prompt has no fewer."""

    text: str = ""
    add_special_tokens: bool = True


class HfProcessor(PromptText):
    """A ``Processor`` around one of transformers. Thread-safe.

    Raises:
        CheckpointError: tokenizer or processor are missing or unusable.
        ConfigError: an option is invalid, or the chat template that it asks for.
    """

    def __init__(
        self,
        folder: Path,
        config: HfConfig,
        prompt: PromptConfig,
        limits: ImageLimits,
        resolution: ImageResolution,
    ) -> None:
        self.images = UprightImages(limits.max_pixels, Shrink.of(resolution))
        self.max_model_len = config.context_length
        self._config = config
        tokenizer = Tokenizer.load(folder)  # first, as its errors name the file
        self._library = load_library_processor(folder, config)
        if config.image_token_id is not None and config.image_token_id >= self._library.num_tokens:
            raise CheckpointError(
                f"{folder}: the tokenizer has {self._library.num_tokens} tokens, none of them the "
                f"model's image_token_id {config.image_token_id}"
            )
        self._placeholder: Placeholder = find_placeholder(
            self._library, config.image_token_id, folder, tokenizer
        )
        super().__init__(
            tokenizer, prompt, folder, IMAGE_PLACEHOLDER, self._placeholder.own or IMAGE_PLACEHOLDER
        )

    @property
    def largest_grid(self) -> ImageGrid:
        """See ``Processor``."""
        return self.images.largest_grid

    @cached_property
    def settings(self) -> dict[str, Any]:
        """See ``Processor``; the checkpoint's own files are not among them."""
        return {**self._text_settings, "placeholder": self._placeholder.text}

    def tokenize(self, row: Row) -> Tokens:
        """See ``Processor``."""
        if row.prompt_token_ids is not None:
            raise RowError(
                ErrorCode.PROMPT_INVALID,
                "a prompt of token ids cannot be used where transformers answers: send its text",
            )
        text, add_special_tokens = self._text(row)
        num_placeholders = self._placeholder.count(text)
        if num_placeholders != len(row.images):
            raise placeholder_mismatch(num_placeholders, len(row.images))
        text = self._placeholder.translate(text)
        token_ids = self._encoded(text, add_special_tokens)
        if not token_ids and not row.images:
            raise RowError(ErrorCode.PROMPT_INVALID, "the prompt is empty")
        self._check_length(len(token_ids), len(row.images))
        return RenderedTokens(token_ids, None, text, add_special_tokens)

    def place(self, tokens: Tokens, grids: Sequence[ImageGrid]) -> EncodedPrompt:
        """See ``Processor``: the prompt as far as it is known without its images."""
        return EncodedPrompt(tokens.token_ids)

    def encode(self, tokens: Tokens, images: Sequence[ImageInput]) -> EncodedPrompt:
        """See ``Processor``."""
        assert isinstance(tokens, RenderedTokens)
        pictures = []
        for image in images:
            assert isinstance(image, PixelImage)
            pictures.append(Image.fromarray(image.pixels))
        try:
            tensors = self._library(tokens.text, pictures, tokens.add_special_tokens)
            token_ids = tensors["input_ids"][0].tolist()
        except ROW_FAILURES as error:
            raise RowError(
                ErrorCode.PROMPT_INVALID,
                f"the model's processor does not take the row's prompt with "
                f"{len(images)} image{'s' * (len(images) != 1)}: {shown(error)}",
            ) from error
        num_image_tokens = token_ids.count(self._config.image_token_id)
        self._check_length(len(token_ids), num_image_tokens)
        inputs = ProcessedInputs(tensors, len(images), num_image_tokens)
        return EncodedPrompt(token_ids, inputs=inputs)

    def feature_grid(self, shape: tuple[int, ...]) -> ImageGrid:
        """See ``Processor``: no image comes as features."""
        raise ValueError(f"shape {shape}: transformers answers, which takes no features")

    def feature_shape(self, grid: ImageGrid) -> tuple[int, ...]:
        """See ``Processor``."""
        raise AssertionError("features are refused before")

    def largest_image(self) -> ImageInput:
        """See ``Processor``."""
        raise AssertionError("no engine of ours is loaded")

    def _check_length(self, num_tokens: int, num_image_tokens: int) -> None:
        if num_tokens >= self.max_model_len:
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"the prompt has {num_tokens} tokens, {num_image_tokens} of them for images; "
                f"with at least one for the answer that exceeds the context of "
                f"{self.max_model_len}",
            )
