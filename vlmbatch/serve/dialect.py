"""What ``/v1/chat/completions`` and ``/v1/completions`` differ in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlmbatch.openai import responses
from vlmbatch.openai.logprobs import chat_logprobs, text_logprobs
from vlmbatch.openai.requests import parse_chat_request, parse_completion_request
from vlmbatch.openai.responses import JsonObject, ResponseHead
from vlmbatch.serve.preparation import Parse
from vlmbatch.types import FinishReason


@dataclass(frozen=True, slots=True)
class Dialect:
    """One of the two endpoints.

    ``first_chunk`` opens a stream; ``max_tokens`` holds for requests that set none, and None
    stands for all that the context has room for.
    """

    parse: Parse
    id_prefix: str
    max_tokens: int | None
    whole: Callable[[ResponseHead, str, FinishReason, JsonObject, JsonObject | None], JsonObject]
    first_chunk: Callable[[ResponseHead], JsonObject] | None
    chunk: Callable[[ResponseHead, str, FinishReason | None, JsonObject | None], JsonObject]
    usage_chunk: Callable[[ResponseHead, JsonObject], JsonObject]
    logprobs: Callable[[list[JsonObject], int], JsonObject]


CHAT = Dialect(
    parse=parse_chat_request,
    id_prefix=responses.CHAT_ID_PREFIX,
    max_tokens=None,
    whole=responses.chat_completion,
    first_chunk=lambda head: responses.chat_chunk(head, "", first=True),
    chunk=lambda head, text, reason, logprobs: responses.chat_chunk(
        head, text or None, reason, logprobs
    ),
    usage_chunk=responses.chat_usage_chunk,
    logprobs=lambda tokens, offset: chat_logprobs(tokens),
)

COMPLETION = Dialect(
    parse=parse_completion_request,
    id_prefix=responses.COMPLETION_ID_PREFIX,
    max_tokens=16,  # as OpenAI's
    whole=responses.text_completion,
    first_chunk=None,
    chunk=responses.text_chunk,
    usage_chunk=responses.text_usage_chunk,
    logprobs=text_logprobs,
)
