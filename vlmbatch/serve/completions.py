"""``/v1/chat/completions`` and ``/v1/completions``: a request's way from its body to its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from vlmbatch.config import SamplingParams
from vlmbatch.errors import VlmbatchError
from vlmbatch.models.described_tokens import described
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.openai import responses
from vlmbatch.openai.errors import SERVER_ERROR, ApiError
from vlmbatch.openai.logprobs import chat_logprobs, text_logprobs
from vlmbatch.openai.requests import parse_chat_request, parse_completion_request
from vlmbatch.openai.responses import JsonObject, ResponseHead
from vlmbatch.serve.body import read_body
from vlmbatch.serve.config import ServeConfig
from vlmbatch.serve.disconnect import while_connected
from vlmbatch.serve.engine_thread import EngineThread, Generation
from vlmbatch.serve.errors import as_api_error
from vlmbatch.serve.event_stream import EventStream
from vlmbatch.serve.json_response import JsonResponse
from vlmbatch.serve.metrics import ServerMetrics
from vlmbatch.serve.preparation import Parse, Preparation, PreparedRequest
from vlmbatch.serve.text_stream import TextStream
from vlmbatch.types import FinishReason


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the two endpoints differ in.

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


class RequestSlots:
    """How many requests may be worked on at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.in_use = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold one of them.

        Raises:
            ApiError: 429, all are taken.
        """
        if self.in_use >= self._limit:
            raise ApiError(
                429,
                f"the server works on {self._limit} requests already "
                "(--max-concurrent-requests); try again",
                "rate_limit_error",
                code="rate_limit_exceeded",
            )
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1


@dataclass(frozen=True, slots=True)
class Service:
    """What answers requests."""

    config: ServeConfig
    tokenizer: Tokenizer
    max_model_len: int
    preparation: Preparation
    engine: EngineThread
    slots: RequestSlots
    metrics: ServerMetrics


class CompletionEndpoint:
    """An ASGI application that answers one of the two."""

    def __init__(self, dialect: Dialect, service: Service) -> None:
        self._dialect = dialect
        self._service = service
        # OpenAI's default temperature, which is not that of a run.
        self._defaults = SamplingParams(
            max_tokens=dialect.max_tokens or service.max_model_len, temperature=1.0
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        config = self._service.config
        request = Request(scope, receive)
        with self._service.slots.take():
            try:
                body = await read_body(request, config.max_request_bytes, config.request_timeout_s)
                await while_connected(receive, self._answer(body, scope, receive, send))
            except ClientDisconnect:
                return

    async def _answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        seconds = self._service.config.request_timeout_s
        stream = EventStream(send)
        try:
            try:
                async with asyncio.timeout(seconds):
                    await self._generate(body, stream, scope, receive, send)
            except TimeoutError as error:
                raise ApiError(
                    504,
                    f"the answer took more than {seconds:g} s (--request-timeout)",
                    SERVER_ERROR,
                    code="timeout",
                ) from error
        except VlmbatchError as error:
            if not stream.started:
                raise
            await stream.put(as_api_error(error).to_json())
            await stream.end()

    async def _generate(
        self, body: bytes, stream: EventStream, scope: Scope, receive: Receive, send: Send
    ) -> None:
        arrived = time.monotonic()
        service, dialect = self._service, self._dialect
        prepared = await service.preparation.prepare(body, dialect.parse, self._defaults)
        asked = prepared.asked
        head = ResponseHead(
            responses.new_id(dialect.id_prefix), int(time.time()), service.config.model_name
        )
        text_stream = TextStream(service.tokenizer, prepared.request.sampling.stop)
        asks = prepared.request.sampling.logprobs is not None
        texts: list[str] = []
        tokens: list[JsonObject] = []  # with their log-probabilities, that wait to be told
        offset = 0  # characters of the tokens that have been told
        reason = None
        with service.engine.generate(prepared.request, every_token=asked.stream) as generation:
            while reason is None:
                chunk = await generation.next_chunk()
                reason = chunk.finish_reason
                text = text_stream.push(chunk)
                tokens += described(chunk.logprobs, service.tokenizer)
                if not asked.stream:
                    texts.append(text)
                    continue
                usage = self._usage(prepared, generation) if asked.continuous_usage else None
                logprobs = dialect.logprobs(tokens, offset) if asks else None
                if await self._put(stream, head, text, reason, usage, logprobs):
                    offset += sum(len(token["token"]) for token in tokens)
                    tokens.clear()
        if generation.first_token_at is not None:
            service.metrics.observe_first_token(generation.first_token_at - arrived)
        usage = self._usage(prepared, generation)
        if asked.stream:
            if asked.include_usage:
                await stream.put(dialect.usage_chunk(head, usage))
            await stream.end()
        else:
            logprobs = dialect.logprobs(tokens, 0) if asks else None
            response = dialect.whole(head, "".join(texts), reason, usage, logprobs)
            await JsonResponse(response)(scope, receive, send)

    async def _put(
        self,
        stream: EventStream,
        head: ResponseHead,
        text: str,
        reason: FinishReason | None,
        usage: JsonObject | None,
        logprobs: JsonObject | None,
    ) -> bool:
        """Stream what is new, if anything; whether it was.

        ``usage``, of the tokens so far, goes into each chunk if it is given.
        """
        more = {} if usage is None else {"usage": usage}
        if not stream.started and self._dialect.first_chunk is not None:
            await stream.put(self._dialect.first_chunk(head) | more)
        if not text and reason is None:
            return False
        await stream.put(self._dialect.chunk(head, text, reason, logprobs) | more)
        return True

    def _usage(self, prepared: PreparedRequest, generation: Generation) -> JsonObject:
        request = prepared.request
        return responses.usage(
            len(request.token_ids),
            generation.num_tokens,
            request.num_image_tokens,
            generation.num_cached_tokens,
        )
