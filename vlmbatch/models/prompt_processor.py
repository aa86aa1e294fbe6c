"""Rows to token ids with image spans: the half of a processor that families share. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.errors import CheckpointError, ErrorCode, RowError
from vlmbatch.models.config import ModelConfig, check_image_arguments
from vlmbatch.models.image_tokens import place_images
from vlmbatch.models.processor import EncodedPrompt, ImageProcessor, Tokens
from vlmbatch.models.prompt_text import IMAGE_PLACEHOLDER, PromptText, context_length
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.types import ImageGrid, ImageInput, ImageSpan, Row


class PromptProcessor(PromptText, ABC):
    """A ``Processor`` but for what it knows of images. Thread-safe.

    Raises:
        CheckpointError: the tokenizer has no image token.
        ConfigError: an argument is invalid or contradicts the model.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        images: ImageProcessor | None,
        prompt: PromptConfig,
        arguments: ImageArguments,
        max_model_len: int | None,
        template_path: Path,
        image_text: str | None = None,
    ) -> None:
        """``max_model_len`` None: the model's. ``template_path``: where to look for a chat template
        when the options name none. ``image_text``: what <image> in a prompt stands for; None: that
        is the model's own image token."""
        check_image_arguments(config, arguments)
        self.images = images
        self.max_model_len = context_length(config.text.max_position_embeddings, max_model_len)
        self._model = config
        self._strict = arguments.strict_image_tokens
        self._image_text = image_text
        own_image_token = _image_token(tokenizer, config.image_token_id)
        image_token = own_image_token if image_text is None else IMAGE_PLACEHOLDER
        super().__init__(tokenizer, prompt, template_path, image_token, own_image_token)

    @property
    @abstractmethod
    def largest_grid(self) -> ImageGrid:
        """See ``Processor``."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """See ``Processor``."""
        return {
            **self._text_settings,
            "image_processor": None if self.images is None else self.images.fingerprint,
            "image_token_id": self._model.image_token_id,
            "image_feature_size": self._model.image_feature_size,
            "strict_image_tokens": self._strict,
        }

    def tokenize(self, row: Row) -> Tokens:
        """See ``Processor``: where all images take as many tokens, the whole prompt is checked."""
        if row.prompt_token_ids is not None:
            token_ids = self._checked(row.prompt_token_ids)
        else:
            text, add_special_tokens = self._text(row)
            if self._image_text is not None:
                text = text.replace(IMAGE_PLACEHOLDER, self._image_text)
            token_ids = self._encoded(text, add_special_tokens)
        if not token_ids:
            raise RowError(ErrorCode.PROMPT_INVALID, "the prompt is empty")
        tokens = Tokens(token_ids)
        if row.images and self._model.image_feature_size is None:
            return tokens
        encoded = self.place(tokens, [self.largest_grid] * len(row.images))
        return Tokens(token_ids, encoded)

    def place(self, tokens: Tokens, grids: Sequence[ImageGrid]) -> EncodedPrompt:
        """See ``Processor``."""
        if tokens.encoded is not None:
            return tokens.encoded
        token_ids, spans = place_images(
            tokens.token_ids,
            self._model.image_token_id,
            [grid.num_tokens for grid in grids],
            self._strict,
        )
        if len(token_ids) >= self.max_model_len:
            num_image_tokens = sum(span.length for span in spans)
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"the prompt has {len(token_ids)} tokens, {num_image_tokens} of them for images; "
                f"with at least one for the answer that exceeds the context of "
                f"{self.max_model_len}",
            )
        positions, next_position = self._positions(token_ids, spans, grids)
        # Tables of positions end with the context.
        assert next_position is None or next_position <= len(token_ids), next_position
        return EncodedPrompt(token_ids, spans, positions, next_position)

    def encode(self, tokens: Tokens, images: Sequence[ImageInput]) -> EncodedPrompt:
        """See ``Processor``."""
        return self.place(tokens, [image.grid for image in images])

    def _checked(self, token_ids: Sequence[int]) -> list[int]:
        """Tokens that are a prompt as they are.

        Raises:
            RowError: the model has no such token.
        """
        vocab_size = self._model.text.vocab_size
        for place, token_id in enumerate(token_ids):
            if not 0 <= token_id < vocab_size:
                raise RowError(
                    ErrorCode.PROMPT_INVALID,
                    f"token {place} of the prompt is {token_id}, and the model has tokens 0 to "
                    f"{vocab_size - 1}",
                )
        return list(token_ids)

    def _positions(
        self, token_ids: list[int], spans: Sequence[ImageSpan], grids: Sequence[ImageGrid]
    ) -> tuple[NDArray[np.int64] | None, int | None]:
        """Positions of the prompt and the one behind it; None for both: as the tokens come."""
        return None, None


def _image_token(tokenizer: Tokenizer, token_id: int) -> str:
    """The text that stands for an image in prompts.

    Raises:
        CheckpointError: the tokenizer does not know the token, or splits its text.
    """
    text = tokenizer.token_text(token_id)
    if text is None:
        raise CheckpointError(
            f"the tokenizer has no token of the model's image_token_id {token_id}"
        )
    ids = tokenizer.encode(text, add_special_tokens=False)
    if ids != [token_id]:
        raise CheckpointError(
            f"the tokenizer encodes the image token {text!r} as {ids}, but the model's "
            f"image_token_id is {token_id}"
        )
    return text
