"""Bodies of requests to what the engine takes, on threads, by the code that prepares rows."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from vlmbatch.config import SamplingParams
from vlmbatch.errors import RowError, VlmbatchError
from vlmbatch.images.loading.loader import ImageLoader
from vlmbatch.images.urls import ImageUrls
from vlmbatch.models.processor import Processor
from vlmbatch.openai.errors import ApiError, bad_request
from vlmbatch.openai.requests import ChatRequest, CompletionRequest
from vlmbatch.serve.engine_thread import EngineStoppedError
from vlmbatch.stages.prepare import prepare
from vlmbatch.types import Request, Result, Row

T = TypeVar("T")
ApiRequest = ChatRequest | CompletionRequest
Parse = Callable[[object, SamplingParams, ImageUrls], ApiRequest]

_FETCH_THREADS = 32  # they wait for other hosts, and must hold up no request without a URL


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request as it was asked, and as the engine takes it."""

    asked: ApiRequest
    requests: tuple[Request, ...]  # one for each prompt

    @property
    def generates(self) -> bool:
        """Whether there is to be an answer, and not the prompt alone."""
        return not isinstance(self.asked, CompletionRequest) or self.asked.generates


@dataclass(frozen=True, slots=True)
class _Parsed:
    """``requests`` are left out where images have to be fetched for them."""

    asked: ApiRequest
    requests: tuple[Request, ...] | None


class Preparation:
    """Parses, checks and tokenizes requests, and has their images loaded.

    ``max_images``: of one request; None: any number. ``threads``: those that work at once; most of
    them wait for an image.
    """

    def __init__(
        self,
        processor: Processor,
        loader: ImageLoader,
        urls: ImageUrls,
        model_name: str,
        max_images: int | None,
        threads: int,
    ) -> None:
        self._processor = processor
        self._loader = loader
        self._urls = urls
        self._model_name = model_name
        self._max_images = max_images
        self._indices = itertools.count()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        self._fetchers = ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="fetch")

    async def prepare(self, body: bytes, parse: Parse, defaults: SamplingParams) -> PreparedRequest:
        """Make of a body what the engine takes. The seed is random where the body has none.

        Raises:
            ApiError: the body is not a request that can be answered.
            RowError: prompt or images cannot be used.
            EngineStoppedError: this was closed before they were there.
        """
        loop = asyncio.get_running_loop()
        parsing = partial(self._parse, body, parse, defaults)
        here = await loop.run_in_executor(self._threads, _contained, parsing)
        if here.requests is not None:
            return PreparedRequest(here.asked, here.requests)
        fetching = partial(self._to_requests, here.asked)
        requests = await loop.run_in_executor(self._fetchers, _contained, fetching)
        return PreparedRequest(here.asked, requests)

    def close(self) -> None:
        """End the threads and what loads images; requests not yet prepared are dropped."""
        self._loader.close()  # first: threads wait for it
        for threads in (self._threads, self._fetchers):
            threads.shutdown(cancel_futures=True)

    def _parse(self, body: bytes, parse: Parse, defaults: SamplingParams) -> _Parsed:
        defaults = replace(defaults, seed=secrets.randbits(63))
        asked = parse(_load_json(body), defaults, self._urls)
        if asked.model != self._model_name:
            raise self._unknown_model(asked.model)
        if self._max_images is not None and len(asked.images) > self._max_images:
            raise bad_request(
                f"the prompt has {len(asked.images)} images, and the server takes "
                f"{self._max_images} (--limit-images-per-prompt)",
                "messages" if isinstance(asked, ChatRequest) else "images",
                "too_many_images",
            )
        fetches = any(image.url is not None for image in asked.images)
        return _Parsed(asked, None if fetches else self._to_requests(asked))

    def _unknown_model(self, name: str | None) -> ApiError:
        if name is None:
            return bad_request("'model' is missing", "model", "missing_required_parameter")
        message = f"there is no model {name!r:.200}; the server has '{self._model_name}'"
        return ApiError(404, message, param="model", code="model_not_found")

    def _to_requests(self, asked: ApiRequest) -> tuple[Request, ...]:
        if isinstance(asked, ChatRequest):
            return (self._to_request(asked, None),)
        requests = []
        for number, prompt in enumerate(asked.prompts):
            try:
                requests.append(self._to_request(asked, prompt))
            except RowError as error:
                if len(asked.prompts) == 1:
                    raise
                raise RowError(error.code, f"prompt {number}: {error.message}") from error
        return tuple(requests)

    def _to_request(self, asked: ApiRequest, prompt: str | tuple[int, ...] | None) -> Request:
        row = Row(
            index=next(self._indices),
            id="",
            line=0,
            file="",
            prompt=prompt if isinstance(prompt, str) else None,
            messages=asked.messages if isinstance(asked, ChatRequest) else None,
            images=asked.images,
            sampling=asked.sampling,
            prompt_token_ids=prompt if isinstance(prompt, tuple) else None,
        )
        prepared = prepare(row, self._processor, self._loader, _nothing_known)
        if prepared.error is not None:
            raise prepared.error
        request = prepared.request
        assert request is not None
        top = asked.sampling.logprobs
        if isinstance(asked, CompletionRequest) and asked.echo and top is not None:
            if request.inputs is not None:
                raise bad_request(
                    "'echo' with 'logprobs' is not supported where transformers answers: leave "
                    "one of them out",
                    "echo",
                    "unsupported_parameter",
                )
            return replace(request, prompt_logprobs=top)
        return request


def _contained(work: Callable[[], T]) -> T:
    """``work``, of which no failure reaches beyond its own request.

    On an event loop SystemExit and KeyboardInterrupt end the loop, and a future that is given a
    StopIteration never wakes up who waits for it.
    """
    try:
        return work()
    except VlmbatchError:
        raise
    except CancelledError:  # what loads images is closed
        raise EngineStoppedError("the server is shutting down") from None
    except BaseException as error:
        raise RuntimeError(f"a request could not be prepared: {error!r}") from error


def _nothing_known(row: Row) -> Result | None:
    return None


def _load_json(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:  # ValueError: of JSON, UTF-8, or a long integer
        raise bad_request(f"the body is not JSON: {error}", None, "invalid_json") from error
