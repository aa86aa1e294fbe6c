"""Rows to token ids with image spans: the half of a processor that families share. No torch."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.errors import CheckpointError, ConfigError, ErrorCode, RowError, UsageError
from vlmbatch.models.chat import ChatTemplate, Message
from vlmbatch.models.config import ModelConfig, check_image_arguments
from vlmbatch.models.family import EncodedPrompt, ImageProcessor, Tokens
from vlmbatch.models.image_tokens import place_images
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.types import ImageGrid, ImageSpan, Row

IMAGE_PLACEHOLDER = "<image>"  # stands for an image in the prompts of every family


class PromptProcessor(ABC):
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
        _check_prompt_options(prompt)
        self.tokenizer = tokenizer
        self.images = images
        self.max_model_len = context_length(config, max_model_len)
        self._model = config
        self._prompt = prompt
        self._strict = arguments.strict_image_tokens
        self._template_path = prompt.chat_template or template_path
        self._own_image_token = _image_token(tokenizer, config.image_token_id)
        self._image_text = image_text
        self.image_token = self._own_image_token if image_text is None else IMAGE_PLACEHOLDER
        if self._names_template:
            _ = self.chat_template  # a missing or bad template is an error before the run

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """Read when first needed: only chat rows need one.

        Raises:
            ConfigError: the model has none, or a bad one.
        """
        return ChatTemplate.load(
            self._template_path,
            self.tokenizer.special_tokens,
            self.image_token,
            self._own_image_token,
        )

    @property
    def _names_template(self) -> bool:
        """Whether the options speak of a template; else only rows of messages need one."""
        return self._prompt.chat or self._prompt.chat_template is not None

    @cached_property
    def _template_or_problem(self) -> ChatTemplate | str:
        try:
            return self.chat_template
        except UsageError as error:
            return str(error)

    @property
    @abstractmethod
    def largest_grid(self) -> ImageGrid:
        """See ``Processor``."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """See ``Processor``."""
        template = self.chat_template.source if self._names_template else None
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "image_processor": None if self.images is None else self.images.fingerprint,
            "image_token_id": self._model.image_token_id,
            "image_feature_size": self._model.image_feature_size,
            "strict_image_tokens": self._strict,
            "prompt_template": self._prompt.prompt_template,
            "system_prompt": self._prompt.system_prompt,
            "chat": self._prompt.chat,
            "chat_template": None if template is None else _digest(template),
        }

    def tokenize(self, row: Row) -> Tokens:
        """See ``Processor``: where all images take as many tokens, the whole prompt is checked."""
        text, add_special_tokens = self._text(row)
        if self._image_text is not None:
            text = text.replace(IMAGE_PLACEHOLDER, self._image_text)
        try:
            token_ids = self.tokenizer.encode(text, add_special_tokens)
        except UnicodeEncodeError as error:
            raise RowError(
                ErrorCode.PROMPT_INVALID,
                f"the prompt is not valid Unicode: character {error.start} is a lone surrogate",
            ) from error
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

    def _positions(
        self, token_ids: list[int], spans: Sequence[ImageSpan], grids: Sequence[ImageGrid]
    ) -> tuple[NDArray[np.int64] | None, int | None]:
        """Positions of the prompt and the one behind it; None for both: as the tokens come."""
        return None, None

    def _text(self, row: Row) -> tuple[str, bool]:
        """The prompt's text, and whether the tokenizer adds its special tokens."""
        if row.messages is not None:
            messages = row.messages
        elif row.prompt is None:
            raise RowError(ErrorCode.PROMPT_INVALID, "the row has neither a prompt nor messages")
        else:
            text = row.prompt
            if self._prompt.prompt_template is not None:
                text = self._prompt.prompt_template.replace("{prompt}", text)
            if not self._prompt.chat:
                return text, True
            messages = [{"role": "user", "content": text}]
        system_prompt = self._prompt.system_prompt
        if system_prompt is not None and messages and not _is_system(messages[0]):
            messages = [{"role": "system", "content": system_prompt}, *messages]
        template = self._template_or_problem
        if isinstance(template, str):
            raise RowError(ErrorCode.PROMPT_INVALID, template)
        rendered = template.render(messages, len(row.images))
        # A template that writes the first token itself must not get it twice.
        bos_token = self.tokenizer.bos_token
        return rendered, bos_token is None or not rendered.startswith(bos_token)


def context_length(config: ModelConfig, max_model_len: int | None) -> int:
    """Tokens of a prompt and its answer; ``max_model_len`` None: the model's own number.

    Raises:
        ConfigError: more than the model's own, or too few for an answer.
    """
    context = config.text.max_position_embeddings
    if max_model_len is None:
        return context
    if not 2 <= max_model_len <= context:
        raise ConfigError(
            f"max_model_len is {max_model_len}, but must be from 2 to the model's {context}"
        )
    return max_model_len


def _check_prompt_options(prompt: PromptConfig) -> None:
    if prompt.prompt_template is not None and "{prompt}" not in prompt.prompt_template:
        raise ConfigError(
            f"the prompt template {prompt.prompt_template!r} has no {{prompt}}, "
            "which stands for the row's prompt"
        )
    if prompt.system_prompt is not None and not prompt.chat:
        raise ConfigError("a system prompt needs the chat template: give --chat as well")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _is_system(message: Message) -> bool:
    # Not checked yet: a manifest may hold anything.
    return isinstance(message, Mapping) and message.get("role") == "system"


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
