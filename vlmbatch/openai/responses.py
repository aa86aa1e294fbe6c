"""Response objects of the OpenAI API, as dictionaries that are ready for JSON."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmbatch.types import FinishReason

JsonObject = dict[str, Any]

CHAT_ID_PREFIX = "chatcmpl-"
COMPLETION_ID_PREFIX = "cmpl-"


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What all objects of one response have in common. ``created``: seconds since 1970."""

    id: str
    created: int
    model: str


def new_id(prefix: str) -> str:
    """An id that nobody can guess, such as ``chatcmpl-...``."""
    return prefix + secrets.token_hex(16)


def usage(
    prompt_tokens: int,
    completion_tokens: int,
    image_tokens: int = 0,
    cached_tokens: int | None = None,
) -> JsonObject:
    """The tokens of one response; images' and cached ones count as the prompt's too.

    ``cached_tokens``: None where they are not known.
    """
    details = {"image_tokens": image_tokens}
    if cached_tokens is not None:
        details["cached_tokens"] = cached_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": details,
    }


def chat_completion(
    head: ResponseHead,
    text: str,
    finish_reason: FinishReason,
    usage: JsonObject,
    logprobs: JsonObject | None = None,
) -> JsonObject:
    """The whole answer of ``/v1/chat/completions``."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
    }
    return {**_head(head, "chat.completion"), "choices": [choice], "usage": usage}


def text_completion(
    head: ResponseHead,
    text: str,
    finish_reason: FinishReason,
    usage: JsonObject,
    logprobs: JsonObject | None = None,
) -> JsonObject:
    """The whole answer of ``/v1/completions``."""
    return {
        **_head(head, "text_completion"),
        "choices": [_text_choice(text, finish_reason, logprobs)],
        "usage": usage,
    }


def joined(responses: Sequence[JsonObject]) -> JsonObject:
    """One response with the choices of several to the same request."""
    choices = [numbered(each, number)["choices"][0] for number, each in enumerate(responses)]
    return {**responses[0], "choices": choices}


def numbered(response: JsonObject, index: int) -> JsonObject:
    """A response whose choice is the ``index``-th of several."""
    return {**response, "choices": [{**each, "index": index} for each in response["choices"]]}


def chat_chunk(
    head: ResponseHead,
    text: str | None = None,
    finish_reason: FinishReason | None = None,
    logprobs: JsonObject | None = None,
    *,
    first: bool = False,
) -> JsonObject:
    """A part of a streamed chat answer; the ``first`` says whose it is."""
    delta: JsonObject = {"role": "assistant"} if first else {}
    if text is not None:
        delta["content"] = text
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return {**_head(head, "chat.completion.chunk"), "choices": [choice]}


def text_chunk(
    head: ResponseHead,
    text: str = "",
    finish_reason: FinishReason | None = None,
    logprobs: JsonObject | None = None,
) -> JsonObject:
    """A part of a streamed answer of ``/v1/completions``."""
    choice = _text_choice(text, finish_reason, logprobs)
    return {**_head(head, "text_completion"), "choices": [choice]}


def chat_usage_chunk(head: ResponseHead, usage: JsonObject) -> JsonObject:
    """What comes last, without choices, when ``stream_options.include_usage`` is set."""
    return {**_head(head, "chat.completion.chunk"), "choices": [], "usage": usage}


def text_usage_chunk(head: ResponseHead, usage: JsonObject) -> JsonObject:
    """As ``chat_usage_chunk``."""
    return {**_head(head, "text_completion"), "choices": [], "usage": usage}


def model_object(name: str, created: int) -> JsonObject:
    """One model of ``/v1/models``."""
    return {"id": name, "object": "model", "created": created, "owned_by": "vlmbatch"}


def model_list(names: Sequence[str], created: int) -> JsonObject:
    """The answer of ``/v1/models``."""
    return {"object": "list", "data": [model_object(name, created) for name in names]}


def _head(head: ResponseHead, kind: str) -> JsonObject:
    return {"id": head.id, "object": kind, "created": head.created, "model": head.model}


def _text_choice(
    text: str, finish_reason: FinishReason | None, logprobs: JsonObject | None
) -> JsonObject:
    return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
