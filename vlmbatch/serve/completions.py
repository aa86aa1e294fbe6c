"""``/v1/chat/completions`` and ``/v1/completions``: a request's way from its body to its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from vlmbatch.config import SamplingParams
from vlmbatch.errors import VlmbatchError
from vlmbatch.models.described_tokens import described
from vlmbatch.openai import responses
from vlmbatch.openai.errors import SERVER_ERROR, ApiError
from vlmbatch.openai.requests import (
    CompletionRequest,
)
from vlmbatch.openai.responses import JsonObject, ResponseHead
from vlmbatch.replicas.several_answers import sampling_of
from vlmbatch.serve.body import read_body
from vlmbatch.serve.dialect import Dialect
from vlmbatch.serve.disconnect import while_connected
from vlmbatch.serve.echo import echoed_text, echoed_tokens
from vlmbatch.serve.engine_thread import Generation
from vlmbatch.serve.errors import as_api_error
from vlmbatch.serve.event_stream import EventStream
from vlmbatch.serve.json_response import JsonResponse
from vlmbatch.serve.preparation import ApiRequest
from vlmbatch.serve.service import Service
from vlmbatch.serve.text_stream import TextStream
from vlmbatch.types import FinishReason
from vlmbatch.types import Request as EngineRequest


class CompletionEndpoint:
    """An ASGI application that answers at the endpoint of a dialect."""

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
        answers = [
            _Answer(number, request, stream, head)
            for number, request in enumerate(_requests(prepared.requests))
        ]
        # Of several, one that fails ends all, as the others would be told to nobody.
        tasks = [asyncio.ensure_future(self._answer_one(each, asked, answers)) for each in answers]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        first_token_at = answers[0].first_token_at
        if first_token_at is not None:
            service.metrics.observe_first_token(first_token_at - arrived)
        usage = _usage(answers, prepared.generates)
        if asked.stream:
            if asked.include_usage:
                await stream.put(dialect.usage_chunk(head, usage))
            await stream.end()
        else:
            if isinstance(asked, CompletionRequest) and asked.echo:
                self._echo(asked, answers)
            whole = [self._whole(each, usage) for each in answers]
            await JsonResponse(responses.joined(whole))(scope, receive, send)

    def _whole(self, answer: _Answer, usage: JsonObject) -> JsonObject:
        assert answer.reason is not None
        logprobs = self._dialect.logprobs(answer.tokens, 0) if answer.asks else None
        text = "".join(answer.texts)
        return self._dialect.whole(answer.head, text, answer.reason, usage, logprobs)

    def _echo(self, asked: CompletionRequest, answers: Sequence[_Answer]) -> None:
        """Put each answer's prompt before it."""
        tokenizer = self._service.tokenizer
        for answer in answers:
            assert answer.generation is not None
            if not asked.generates:
                for generated in (answer.texts, answer.tokens, answer.token_ids):
                    generated.clear()
                answer.reason = "length"
            prompt = asked.prompts[answer.number // asked.sampling.n]
            token_ids = answer.request.token_ids
            answer.texts.insert(0, echoed_text(prompt, token_ids, answer.token_ids, tokenizer))
            if answer.asks:
                logprobs = answer.generation.prompt_logprobs
                answer.tokens[:0] = echoed_tokens(token_ids, logprobs, tokenizer)

    async def _answer_one(
        self, answer: _Answer, asked: ApiRequest, answers: Sequence[_Answer]
    ) -> None:
        """Have one of the answers to a request generated, and streamed where that is asked for."""
        service, dialect = self._service, self._dialect
        text_stream = TextStream(service.tokenizer, answer.request.sampling.stop)
        offset = 0  # characters of the tokens that have been told
        with service.engine.generate(answer.request, every_token=asked.stream) as generation:
            answer.generation = generation
            while answer.reason is None:
                chunk = await generation.next_chunk()
                answer.reason = chunk.finish_reason
                text = text_stream.push(chunk)
                answer.token_ids += chunk.token_ids
                answer.tokens += described(chunk.logprobs, service.tokenizer)
                if not asked.stream:
                    answer.texts.append(text)
                    continue
                usage = _usage(answers) if asked.continuous_usage else None
                logprobs = dialect.logprobs(answer.tokens, offset) if answer.asks else None
                if await self._put(answer, text, usage, logprobs):
                    offset += sum(len(token["token"]) for token in answer.tokens)
                    answer.tokens.clear()

    async def _put(
        self, answer: _Answer, text: str, usage: JsonObject | None, logprobs: JsonObject | None
    ) -> bool:
        """Stream what is new, if anything; whether it was.

        ``usage``, of the tokens so far, goes into each chunk if it is given.
        """
        more = {} if usage is None else {"usage": usage}
        number, reason = answer.number, answer.reason
        if not answer.opened and self._dialect.first_chunk is not None:
            answer.opened = True
            first = self._dialect.first_chunk(answer.head) | more
            await answer.stream.put(responses.numbered(first, number))
        if not text and reason is None:
            return False
        chunk = self._dialect.chunk(answer.head, text, reason, logprobs) | more
        await answer.stream.put(responses.numbered(chunk, number))
        return True


@dataclass(slots=True)
class _Answer:
    """One of the answers to a request. ``tokens``: with their log-probabilities, not told yet."""

    number: int
    request: EngineRequest
    stream: EventStream
    head: ResponseHead
    generation: Generation | None = None
    reason: FinishReason | None = None
    opened: bool = False  # its stream
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    tokens: list[JsonObject] = field(default_factory=list)

    @property
    def asks(self) -> bool:
        """Whether log-probabilities are asked for."""
        return self.request.sampling.logprobs is not None

    @property
    def first_token_at(self) -> float | None:
        return None if self.generation is None else self.generation.first_token_at


def _requests(prompts: Sequence[EngineRequest]) -> Iterator[EngineRequest]:
    """One for each of the answers to each prompt, as many to every one."""
    for request in prompts:
        for number in range(request.sampling.n):
            yield replace(request, sampling=sampling_of(request.sampling, number))


def _usage(answers: Sequence[_Answer], generates: bool = True) -> JsonObject:
    """The tokens so far: of each prompt once, of all answers together, where these are wanted."""
    firsts = {each.request.index: each for each in reversed(answers)}.values()
    requests = [each.request for each in firsts]
    generated = (each.generation.num_tokens for each in answers if each.generation is not None)
    cached = (each.generation.num_cached_tokens for each in firsts if each.generation is not None)
    return responses.usage(
        sum(len(request.token_ids) for request in requests),
        sum(generated) if generates else 0,
        sum(request.num_image_tokens for request in requests),
        sum(cached),
    )
