"""Bodies of ``/v1/chat/completions`` and ``/v1/completions``, checked and in our own terms."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from vlmbatch.config import SamplingParams
from vlmbatch.images.urls import ImageUrls
from vlmbatch.openai.errors import bad_request
from vlmbatch.openai.fields import (
    Json,
    boolean,
    json_object,
    missing,
    object_body,
    string,
    wrong_type,
)
from vlmbatch.openai.logprobs import read_chat_logprobs, read_text_logprobs
from vlmbatch.openai.messages import read_image, read_messages
from vlmbatch.openai.resolution import RESOLUTION_FIELD, at_own_resolution
from vlmbatch.openai.sampling import SAMPLING_FIELDS, read_sampling
from vlmbatch.openai.unsupported import NEUTRAL_CHAT, NEUTRAL_COMPLETION, check_fields
from vlmbatch.types import ImageRef

CHAT_URL = "/v1/chat/completions"
COMPLETION_URL = "/v1/completions"

_COMMON = SAMPLING_FIELDS | {"model", "logprobs", "stream", "stream_options", RESOLUTION_FIELD}
_CHAT_FIELDS = _COMMON | {"messages", "max_completion_tokens", "top_logprobs"}
_COMPLETION_FIELDS = _COMMON | {"prompt", "images", "echo"}  # images: ours; OpenAI's has none
_MAX_PROMPTS = 256  # of one request
_PROMPT_KINDS = "a string, an array of token ids, or an array of these"
# The last is vLLM's; OpenAI's obfuscation pads what is streamed, and is a matter of taste.
_STREAM_OPTIONS = ("include_usage", "include_obfuscation", "continuous_usage_stats")

NO_URLS = ImageUrls()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A parsed chat completion request.

    ``messages`` are as ``models.chat`` takes them: each image's place is an ``{"type": "image"}``
    part, and ``images`` has them in that order. ``model`` is None where the body names none.
    """

    model: str | None
    messages: list[dict[str, Any]] = field(repr=False)
    images: tuple[ImageRef, ...]
    sampling: SamplingParams
    stream: bool = False
    include_usage: bool = False  # at the end of a stream
    continuous_usage: bool = False  # and in each of its chunks
    user: str | None = None


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A parsed completion request, of one prompt or several, each a text or token ids.

    ``images`` are those of the ``<image>`` tokens in the one prompt that there then is.
    """

    model: str | None
    prompts: tuple[str | tuple[int, ...], ...] = field(repr=False)
    images: tuple[ImageRef, ...]
    sampling: SamplingParams
    stream: bool = False
    include_usage: bool = False  # at the end of a stream
    continuous_usage: bool = False  # and in each of its chunks
    user: str | None = None
    echo: bool = False  # the prompt comes before the answer
    generates: bool = True  # False: there is to be no answer behind the echo


def parse_chat_request(
    body: object, defaults: SamplingParams, urls: ImageUrls = NO_URLS
) -> ChatRequest:
    """Read the body of ``/v1/chat/completions``; ``defaults`` hold for what it leaves out.

    ``urls``: which images may be named. Fields that would change the answer and are not supported
    are refused, as are those that nobody knows.

    Raises:
        ApiError: 400; ``param`` names the field.
    """
    body = object_body(body)
    check_fields(body, _CHAT_FIELDS, NEUTRAL_CHAT)
    messages, images = read_messages(body.get("messages"), urls)
    images = at_own_resolution(body, images)
    sampling = read_sampling(body, defaults)
    sampling = replace(sampling, logprobs=read_chat_logprobs(body, defaults.logprobs))
    return ChatRequest(
        string(body, "model"),
        messages,
        images,
        sampling,
        *_stream(body),
        string(body, "user"),
    )


def parse_completion_request(
    body: object, defaults: SamplingParams, urls: ImageUrls = NO_URLS
) -> CompletionRequest:
    """Read the body of ``/v1/completions``; as ``parse_chat_request``.

    Images are URLs in the array ``images``, in the order of the prompt's ``<image>`` tokens.

    Raises:
        ApiError: 400; ``param`` names the field.
    """
    body = object_body(body)
    check_fields(body, _COMPLETION_FIELDS, NEUTRAL_COMPLETION)
    prompts = _prompts(body.get("prompt"))
    images = at_own_resolution(body, _images(body.get("images"), urls))
    if images and len(prompts) > 1:
        raise bad_request(
            f"'images' cannot be told apart among {len(prompts)} prompts: send a request for each",
            "images",
        )
    echo = boolean(body, "echo")
    generates = not (echo and body.get("max_tokens") == 0)
    sampling = read_sampling(body if generates else body | {"max_tokens": 1}, defaults)
    sampling = replace(sampling, logprobs=read_text_logprobs(body, defaults.logprobs))
    if (answers := len(prompts) * sampling.n) > _MAX_PROMPTS:
        raise bad_request(
            f"'n' with {sampling.n} makes {answers} answers to {len(prompts)} prompts, at most "
            f"{_MAX_PROMPTS} fit a request",
            "n",
        )
    stream = _stream(body)
    if echo:
        _check_echo(images, *stream)
    return CompletionRequest(
        string(body, "model"),
        prompts,
        images,
        sampling,
        *stream,
        string(body, "user"),
        echo,
        generates,
    )


def _check_echo(images: tuple[ImageRef, ...], stream: bool, *_: bool) -> None:
    for name, given in (("stream", stream), ("images", bool(images))):
        if given:
            raise bad_request(
                f"'echo' with '{name}' is not supported: leave one of them out",
                "echo",
                "unsupported_parameter",
            )


def _images(value: object, urls: ImageUrls) -> tuple[ImageRef, ...]:
    if value is None:
        return ()
    if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise wrong_type("images", "an array of URLs", value)
    return tuple(read_image(url, urls, f"images[{index}]") for index, url in enumerate(value))


def _prompts(value: object) -> tuple[str | tuple[int, ...], ...]:
    """A text, token ids, or an array of either."""
    if value is None:
        raise missing("prompt")
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise wrong_type("prompt", _PROMPT_KINDS, value)
    if not value:
        raise bad_request("'prompt' is empty: it needs at least one text or token", "prompt")
    if not isinstance(value[0], str | list):
        return (_token_ids(value, "prompt"),)
    if len(value) > _MAX_PROMPTS:
        raise bad_request(
            f"'prompt' has {len(value)} prompts, at most {_MAX_PROMPTS} fit a request", "prompt"
        )
    return tuple(
        item if isinstance(item, str) else _token_ids(item, f"prompt[{number}]")
        for number, item in enumerate(value)
    )


def _token_ids(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise wrong_type(where, _PROMPT_KINDS, value)
    for item in value:
        if not isinstance(item, int) or isinstance(item, bool):
            raise wrong_type(where, _PROMPT_KINDS, item)
    return tuple(value)


def _stream(body: Json) -> tuple[bool, bool, bool]:
    """``stream``, ``include_usage`` and ``continuous_usage`` of a request."""
    stream = boolean(body, "stream")
    options = json_object(body, "stream_options")
    if options is None:
        return stream, False, False
    if not stream:
        raise bad_request(
            "'stream_options' is only allowed when 'stream' is true", "stream_options"
        )
    for name in options:
        if name not in _STREAM_OPTIONS:
            raise bad_request(
                f"'stream_options' has the field {name!r:.80}, which is not known",
                "stream_options",
                "unknown_parameter",
            )
    usage, _, continuous = (boolean(options, name, "stream_options.") for name in _STREAM_OPTIONS)
    return stream, usage, usage and continuous  # as vLLM: the one asks for the other
