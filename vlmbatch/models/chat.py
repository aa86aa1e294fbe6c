"""Chat templates: messages to a prompt, rendered as transformers renders them.

A template comes with the checkpoint and is not trusted: it runs in a sandbox, and its output is
bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.template_limits import MAX_CHARACTERS
from vlmbatch.models.template_sandbox import TemplateSandbox

_PROBE = "vlmbatch probe"
_VIDEO_PARTS = ("video", "video_url")
_MAX_SOURCE = 2**20  # characters; published templates have a few thousand
# What compiling one can raise: Jinja makes Python of it, in which nesting is limited.
_COMPILE_ERRORS = (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError, OverflowError)
# What running a template can raise, beyond Jinja's own: it is an expression language.
_RENDER_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
)

Message = Mapping[str, Any]
Content = str | list[dict[str, Any]]


class ChatTemplate:
    """One compiled template.

    ``special_tokens`` are what the template may name (``bos_token`` and so on); ``image_token`` is
    the text of an image in templates that take a message's content as one string, and
    ``own_image_token`` another that messages may hold.

    Raises:
        ConfigError: the template does not compile, or renders no user message.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        image_token: str = "<image>",
        own_image_token: str | None = None,
    ) -> None:
        self.source = source
        self._variables = dict(special_tokens)
        self._image_token = image_token
        self._image_tokens = (image_token, own_image_token or image_token)
        self._sandbox = TemplateSandbox()
        if len(source) > _MAX_SOURCE:
            raise ConfigError(
                f"the chat template has {len(source)} characters, over the limit of {_MAX_SOURCE}"
            )
        try:
            self._template = self._sandbox.from_string(source)
        except _COMPILE_ERRORS as error:
            raise ConfigError(f"the chat template is not valid Jinja: {error}") from error
        of_parts = self._probe([{"type": "text", "text": _PROBE}])
        of_string = self._probe(_PROBE)
        if of_parts is None and of_string is None:
            raise ConfigError(f"the chat template {self._refusal()}")
        self._takes_parts, self._takes_strings = of_parts is not None, of_string is not None
        self._writes_image = self._has_image(of_string or of_parts or "")

    @classmethod
    def load(
        cls,
        path: Path,
        special_tokens: Mapping[str, str],
        image_token: str = "<image>",
        own_image_token: str | None = None,
    ) -> ChatTemplate:
        """Read a template from a file, or from a checkpoint's folder.

        Raises:
            ConfigError: no template there, or a bad one.
            CheckpointError: a JSON file is malformed.
        """
        source = _read_folder(path) if path.is_dir() else _read_file(path)
        try:
            return cls(source, special_tokens, image_token, own_image_token)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def render(self, messages: Sequence[Message], num_images: int = 0) -> str:
        """The prompt for ``messages`` (OpenAI's form), up to where the assistant answers.

        A message's content is a string or a list of parts, each ``{"type": "text", "text": ...}``,
        ``{"type": "image"}`` or ``{"type": "image_url"}``. Where nothing in the messages stands for
        an image, ``num_images`` of them go before the text of the first user message. Where the
        template writes one beside every text, as JoyCaption's does, it alone says where it stands.

        Raises:
            RowError: the messages are malformed, or the template refuses them.
        """
        checked = [_check_message(number, message) for number, message in enumerate(messages, 1)]
        if not checked:
            raise RowError(ErrorCode.PROMPT_INVALID, "messages is empty")
        if self._writes_image:
            for message in checked:
                message["content"] = self._without_images(message["content"])
        elif not any(self._has_image(message["content"]) for message in checked):
            _add_images(checked, num_images)
        for message in checked:
            message["content"] = self._convert(message["content"])
        try:
            return self._run(checked)
        except _RENDER_ERRORS as error:
            raise RowError(
                ErrorCode.PROMPT_INVALID, f"the chat template refuses the messages: {error}"
            ) from error

    def _probe(self, content: object) -> str | None:
        """What the template makes of ``content``; None where that is not its text."""
        try:
            text = self._run([{"role": "user", "content": content}])
        except _RENDER_ERRORS:
            return None
        return text if _PROBE in text and "'type'" not in text and '"type"' not in text else None

    def _refusal(self) -> str:
        """What it does to a message of one user that is a string."""
        try:
            self._run([{"role": "user", "content": _PROBE}])
        except _RENDER_ERRORS as error:
            return f"refuses a user's message: {error}"
        return "leaves out the text of a user's message"

    def _run(self, messages: list[dict[str, Any]]) -> str:
        chunks, length = [], 0
        with self._sandbox.metered():
            for chunk in self._template.generate(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._variables,
            ):
                length += len(chunk)
                if length > MAX_CHARACTERS:
                    raise SecurityError(f"its output exceeds {MAX_CHARACTERS} characters")
                chunks.append(chunk)
        return "".join(chunks)

    def _has_image(self, content: Content) -> bool:
        if isinstance(content, str):
            return any(token in content for token in self._image_tokens)
        return any(part["type"] == "image" or self._has_image(part["text"]) for part in content)

    def _without_images(self, content: Content) -> Content:
        """Content less all that stands for an image."""
        if isinstance(content, str):
            for token in self._image_tokens:
                content = content.replace(token, "")
            return content
        texts = [part for part in content if part["type"] != "image"]
        return [{**part, "text": self._without_images(part["text"])} for part in texts]

    def _convert(self, content: Content) -> Content:
        """Content in a form that the template takes, unchanged where it can be."""
        if isinstance(content, str):
            return content if self._takes_strings else _as_parts(content)
        if self._takes_parts:
            return content
        return "\n".join(part.get("text", self._image_token) for part in content)


def _as_parts(content: Content) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _add_images(messages: list[dict[str, Any]], num_images: int) -> None:
    for message in messages:
        if num_images and message["role"] == "user":
            images = [{"type": "image"} for _ in range(num_images)]
            message["content"] = images + _as_parts(message["content"])
            return


def _check_message(number: int, message: object) -> dict[str, Any]:
    where = f"message {number}"
    if not isinstance(message, Mapping):
        raise _invalid(where, "an object with role and content", message)
    # A null stands for a field that is not there, as in Parquet's structs.
    checked = {name: value for name, value in message.items() if value is not None}
    if not isinstance(checked.get("role"), str):
        raise _invalid(f"{where}: role", "a string", checked.get("role"))
    content = checked.get("content")
    if isinstance(content, list | tuple):
        parts = [
            _check_part(f"{where}: part {index}", part) for index, part in enumerate(content, 1)
        ]
        return checked | {"content": parts}
    if not isinstance(content, str):
        raise _invalid(f"{where}: content", "a string or a list of parts", content)
    return checked


def _check_part(where: str, part: object) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("image", "image_url"):
        return {"type": "image"}
    if kind in _VIDEO_PARTS:
        raise RowError(
            ErrorCode.PROMPT_INVALID,
            f"messages: {where} is of type {kind!r}: videos are not taken, frames of them as "
            "images are",
        )
    if kind != "text" or not isinstance(part, Mapping):
        raise _invalid(where, 'a part of type "text", "image" or "image_url"', part)
    if not isinstance(part.get("text"), str):
        raise _invalid(f"{where}: text", "a string", part.get("text"))
    return {name: value for name, value in part.items() if value is not None}


def _invalid(where: str, expected: str, found: object) -> RowError:
    shown = repr(found)[:200]
    return RowError(ErrorCode.PROMPT_INVALID, f"messages: {where} is {shown}, expected {expected}")


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the chat template cannot be read: {error}") from error


def _read_folder(folder: Path) -> str:
    """The checkpoint's template, where transformers looks for it and in that order."""
    for name in ("processor_config.json", "chat_template.json"):
        if (folder / name).exists():
            source = JsonFields.load(folder / name).string("chat_template", None)
            if source is not None:
                return source
    if (folder / "chat_template.jinja").exists():
        return _read_file(folder / "chat_template.jinja")
    path = folder / "tokenizer_config.json"
    templates = JsonFields.load(path).values.get("chat_template") if path.exists() else None
    if isinstance(templates, list):  # several, by name
        named = {item.get("name"): item for item in templates if isinstance(item, dict)}
        templates = named.get("default", {}).get("template")
    if not isinstance(templates, str):
        raise ConfigError(
            f"{folder}: the model has no chat template; give one with --chat-template FILE"
        )
    return templates
