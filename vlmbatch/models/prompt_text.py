"""Rows to the text of their prompts, by the options and a chat template. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbatch.config import PromptConfig
from vlmbatch.errors import ErrorCode, FieldError, RowError, UsageError
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.types import Row

if TYPE_CHECKING:
    from vlmbatch.models.chat import ChatTemplate, Message

IMAGE_PLACEHOLDER = "<image>"  # stands for an image in the prompts of every model


class PromptText:
    """The half of a processor that knows templates. Thread-safe.

    ``image_token``: the text that stands for an image in prompts; ``own_image_token`` the model's,
    which prompts may hold as well. ``template_path``: where to look for a chat template when the
    options name none.

    Raises:
        ConfigError: an option is invalid, or the chat template that it asks for.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: PromptConfig,
        template_path: Path,
        image_token: str,
        own_image_token: str,
    ) -> None:
        _check_prompt_options(prompt)
        self.tokenizer = tokenizer
        self.image_token = image_token
        self._own_image_token = own_image_token
        self._prompt = prompt
        self._template_path = prompt.chat_template or template_path
        if self._names_template:
            _ = self.chat_template  # a missing or bad template is an error before the run

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled template, which cannot be pickled: it is read again where needed."""
        compiled = ("chat_template", "_template_or_problem")
        return {name: value for name, value in vars(self).items() if name not in compiled}

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """Read when first needed: only chat rows need one.

        Raises:
            ConfigError: the model has none, or a bad one.
        """
        from vlmbatch.models.chat import ChatTemplate

        return ChatTemplate.load(
            self._template_path,
            self.tokenizer.special_tokens,
            self.image_token,
            self._own_image_token,
        )

    @property
    def _text_settings(self) -> dict[str, Any]:
        """What decides the token ids of a text, by name: a part of ``Processor.settings``."""
        template = self.chat_template.source if self._names_template else None
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "prompt_template": self._prompt.prompt_template,
            "system_prompt": self._prompt.system_prompt,
            "chat": self._prompt.chat,
            "chat_template": None if template is None else _digest(template),
        }

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

    def _encoded(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a prompt's text.

        Raises:
            RowError: it is not valid Unicode.
        """
        try:
            return self.tokenizer.encode(text, add_special_tokens)
        except UnicodeEncodeError as error:
            raise RowError(
                ErrorCode.PROMPT_INVALID,
                f"the prompt is not valid Unicode: character {error.start} is a lone surrogate",
            ) from error


def context_length(own: int, max_model_len: int | None) -> int:
    """Tokens of a prompt and its answer; ``max_model_len`` None: the model's ``own`` number.

    Raises:
        ConfigError: more than the model's own, or too few for an answer.
    """
    if max_model_len is None:
        return own
    if not 2 <= max_model_len <= own:
        raise FieldError(
            "max_model_len", f"is {max_model_len}, but must be from 2 to the model's {own}"
        )
    return max_model_len


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _check_prompt_options(prompt: PromptConfig) -> None:
    if prompt.prompt_template is not None and "{prompt}" not in prompt.prompt_template:
        raise FieldError(
            "prompt_template",
            f"{prompt.prompt_template!r} has no {{prompt}}, which stands for the row's prompt",
        )
    if prompt.system_prompt is not None and not prompt.chat:
        raise FieldError("system_prompt", "needs the chat template: give --chat as well")


def _is_system(message: Message) -> bool:
    # Not checked yet: a manifest may hold anything.
    return isinstance(message, Mapping) and message.get("role") == "system"
