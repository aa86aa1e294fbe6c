"""Rows to what the engine takes: token ids with image spans, and pixels. No torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.errors import CheckpointError, ConfigError, ErrorCode, RowError, UsageError
from vlmbatch.models.chat import ChatTemplate, Message
from vlmbatch.models.config import ModelConfig, check_image_arguments
from vlmbatch.models.image_processor import ImageProcessor
from vlmbatch.models.image_tokens import place_images
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.types import ImageInput, ImageSpan, PixelImage, Request, Row


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A row's prompt as the engine takes it; ``positions`` as in ``Request``."""

    token_ids: list[int] = field(repr=False)
    image_spans: tuple[ImageSpan, ...] = ()
    positions: NDArray[np.int64] | None = field(default=None, repr=False)


class LlavaProcessor:
    """Prompts and images of a LLaVA model, equal to transformers' processor. Thread-safe.

    ``settings``: all that decides the token ids and the pixels of a row, by name; where that is the
    content of files, its digest.
    ``image_processor`` is None where images come as features.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        image_processor: ImageProcessor | None,
        prompt: PromptConfig,
        images: ImageArguments,
        max_model_len: int,
        template_path: Path,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.max_model_len = max_model_len
        self._prompt = prompt
        self._strict = images.strict_image_tokens
        self._template_path = template_path
        self.image_token = _image_token(tokenizer, config.image_token_id)
        if self._names_template:
            _ = self.chat_template  # a missing or bad template is an error before the run

    @classmethod
    def load(
        cls,
        folder: Path,
        config: ModelConfig,
        prompt: PromptConfig,
        images: ImageArguments,
        max_model_len: int | None = None,
        *,
        tokenizer_folder: Path | None = None,
        image_processor_folder: Path | None = None,
    ) -> LlavaProcessor:
        """Read tokenizer, image processor and chat template of a checkpoint's folder.

        Tokenizer and image processor may be another's. The latter is not looked for where images
        come as features.

        Raises:
            CheckpointError: one of them is missing, unsupported or contradicts the model.
            ConfigError: an argument is invalid or contradicts the model.
        """
        check_image_arguments(config, images)
        context = config.text.max_position_embeddings
        if max_model_len is not None and not 2 <= max_model_len <= context:
            raise ConfigError(
                f"max_model_len is {max_model_len}, but must be from 2 to the model's {context}"
            )
        if prompt.prompt_template is not None and "{prompt}" not in prompt.prompt_template:
            raise ConfigError(
                f"the prompt template {prompt.prompt_template!r} has no {{prompt}}, "
                "which stands for the row's prompt"
            )
        if prompt.system_prompt is not None and not prompt.chat:
            raise ConfigError("a system prompt needs the chat template: give --chat as well")
        image_processor = None
        if images.image_input_type == "pixel_values":
            image_processor = _load_image_processor(image_processor_folder or folder, config)
        return cls(
            config,
            Tokenizer.load(tokenizer_folder or folder),
            image_processor,
            prompt,
            images,
            context if max_model_len is None else max_model_len,
            prompt.chat_template or folder,
        )

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """Read when first needed: only chat rows need one.

        Raises:
            ConfigError: the model has none, or a bad one.
        """
        return ChatTemplate.load(
            self._template_path, self.tokenizer.special_tokens, self.image_token
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
    def image_bytes(self) -> int:
        """Memory that one image takes on its way to the engine, at most: pixels or features."""
        if self.image_processor is not None:
            return self.image_processor.output_bytes
        return 4 * math.prod(self.config.feature_shape)

    @cached_property
    def settings(self) -> dict[str, Any]:
        images = self.image_processor
        template = self.chat_template.source if self._names_template else None
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "image_processor": None if images is None else images.fingerprint,
            "image_token_id": self.config.image_token_id,
            "image_feature_size": self.config.image_feature_size,
            "strict_image_tokens": self._strict,
            "prompt_template": self._prompt.prompt_template,
            "system_prompt": self._prompt.system_prompt,
            "chat": self._prompt.chat,
            "chat_template": None if template is None else _digest(template),
        }

    def encode(self, row: Row) -> EncodedPrompt:
        """Token ids of a row's prompt or messages, with room for its images' features.

        Raises:
            RowError: ``prompt_invalid``, ``image_token_mismatch`` or ``prompt_too_long``.
        """
        text, add_special_tokens = self._text(row)
        try:
            token_ids = self.tokenizer.encode(text, add_special_tokens)
        except UnicodeEncodeError as error:
            raise RowError(
                ErrorCode.PROMPT_INVALID,
                f"the prompt is not valid Unicode: character {error.start} is a lone surrogate",
            ) from error
        if not token_ids:
            raise RowError(ErrorCode.PROMPT_INVALID, "the prompt is empty")
        token_ids, spans = place_images(
            token_ids, self.config.image_token_id, self._feature_sizes(row), self._strict
        )
        if len(token_ids) >= self.max_model_len:
            num_image_tokens = sum(span.length for span in spans)
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"the prompt has {len(token_ids)} tokens, {num_image_tokens} of them for images; "
                f"with at least one for the answer that exceeds the context of "
                f"{self.max_model_len}",
            )
        return EncodedPrompt(token_ids, spans)

    def process_image(self, image: Image.Image) -> PixelImage:
        """Pixels of one decoded RGB image.

        Raises:
            RowError: ``image_too_large`` where the model pads and the image is very long.
        """
        assert self.image_processor is not None, "images come as features"
        return self.image_processor.process(image)

    def to_request(self, row: Row, encoded: EncodedPrompt, images: Sequence[ImageInput]) -> Request:
        """The row in the engine's terms."""
        assert row.sampling is not None
        assert len(images) == len(row.images)
        return Request(
            index=row.index,
            token_ids=encoded.token_ids,
            sampling=row.sampling,
            images=tuple(images),
            image_spans=encoded.image_spans,
            positions=encoded.positions,
        )

    def _feature_sizes(self, row: Row) -> list[int]:
        """Tokens that each image takes. LLaVA-1.5's are all alike; any-resolution models' vary."""
        return [self.config.image_feature_size] * len(row.images)

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


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _is_system(message: Message) -> bool:
    # Not checked yet: a manifest may hold anything.
    return isinstance(message, Mapping) and message.get("role") == "system"


def _load_image_processor(folder: Path, config: ModelConfig) -> ImageProcessor:
    image_processor = ImageProcessor.load(folder)
    if image_processor.output_size != config.image_input_shape[2:]:
        raise CheckpointError(
            f"{folder}: the image processor makes images of {image_processor.output_size}, "
            f"but the vision tower takes {config.image_input_shape[2:]}"
        )
    return image_processor


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
