"""The engine on a thread of its own: requests go in from an event loop, tokens come back to it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

from vlmbatch.errors import VlmbatchError
from vlmbatch.log import logger
from vlmbatch.replicas.replica import Completion, NewTokens, Replica
from vlmbatch.types import FinishReason, Request, TokenLogprob


class EngineStoppedError(VlmbatchError):
    """The engine takes no more requests: it is being shut down, or has failed as a whole."""


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """Tokens that have come since the chunk before; ``finish_reason`` is set on the last chunk.

    ``text_end``: of the last chunk, when a stop string ended the answer: the characters before it.
    """

    token_ids: list[int]
    finish_reason: FinishReason | None
    text_end: int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of each, where asked for


class Generation:
    """A request under way, as the event loop sees it.

    ``first_token_at``: ``time.monotonic()`` of the first token; None before the last one.
    ``num_tokens``: those that have come so far. ``prompt_logprobs``: those of its prompt, at the
    end, where they are asked for.
    """

    def __init__(self, request: Request, every_token: bool) -> None:
        self.request = request
        self.every_token = every_token
        self.first_token_at: float | None = None
        self.num_cached_tokens = 0
        self.num_tokens = 0
        self.prompt_logprobs: Sequence[TokenLogprob] = ()
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish_reason: FinishReason | None = None
        self._text_end: int | None = None
        self._error: VlmbatchError | None = None
        self._news = asyncio.Event()

    @property
    def answered(self) -> bool:
        """Whether the last token has come."""
        return self._finish_reason is not None

    async def next_chunk(self) -> TokenChunk:
        """Wait for more tokens; not to be called after the last chunk.

        A reader that falls behind gets fewer and longer chunks.

        Raises:
            RowError: the engine cannot answer this request, or failed on it.
            EngineStoppedError: the engine stopped before the request was answered.
        """
        await self._news.wait()
        self._news.clear()
        if self._error is not None:
            raise self._error
        tokens, self._tokens = self._tokens, []
        logprobs, self._logprobs = self._logprobs, []
        return TokenChunk(tokens, self._finish_reason, self._text_end, logprobs)

    def take(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob] = ()) -> None:
        """Add tokens, for the reader to find."""
        self.num_tokens += len(token_ids)
        self._tokens += token_ids
        self._logprobs += logprobs
        self._news.set()

    def complete(self, completion: Completion) -> None:
        """Add the tokens that have not come yet, which are the last ones."""
        self.first_token_at = completion.first_token_at
        self.num_cached_tokens = completion.cached_tokens
        self._finish_reason = completion.finish_reason
        self._text_end = completion.text_end
        self.prompt_logprobs = completion.prompt_logprobs
        come = self.num_tokens
        self.take(completion.token_ids[come:], completion.logprobs[come:])

    def fail(self, error: VlmbatchError) -> None:
        """End with ``error``, unless it has ended already."""
        if not self.answered and self._error is None:
            self._error = error
            self._news.set()


class EngineThread:
    """Owns ``replica``, which is not thread-safe, and polls it while there are requests.

    All methods are called on the event loop that made it. Requests that arrive during a step take
    part in the next one; while there are none, the thread sleeps.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._loop = asyncio.get_running_loop()
        self._generations: set[Generation] = set()  # not finished; belongs to the loop
        self._stopped: EngineStoppedError | None = None  # belongs to the loop
        self._indexes = count()  # belongs to the loop
        # What follows belongs to the thread.
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outbox: list[Callable[[], None]] = []
        self._under_way: dict[int, Generation] = {}  # by the request's index
        self._closing = False
        self.status = replica.status  # replaced as a whole, so that any thread may read it
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether requests are taken."""
        return self._stopped is None

    @contextmanager
    def generate(self, request: Request, *, every_token: bool) -> Iterator[Generation]:
        """Have a request answered; leaving the block gives up what is not finished of it.

        Its index is replaced by one of our own. ``every_token``: tokens come as soon as they are
        known, and not only all of them at the end.

        Raises:
            EngineStoppedError: no more requests are taken.
        """
        if self._stopped is not None:
            raise self._stopped
        generation = Generation(replace(request, index=next(self._indexes)), every_token)
        self._generations.add(generation)
        self._inbox.put(partial(self._admit, generation))
        try:
            yield generation
        finally:
            self._generations.discard(generation)
            if not generation.answered:
                self._inbox.put(partial(self._give_up, generation))

    def stop(self, reason: str) -> None:
        """Take no more requests, and end those under way with an error that says ``reason``."""
        if self._stopped is None:
            self._stopped = EngineStoppedError(reason)
        for generation in self._generations:
            generation.fail(self._stopped)

    async def close(self) -> None:
        """Stop, and end the thread after the step that it may be in."""
        self.stop("the server is shutting down")
        self._inbox.put(self._end)
        await asyncio.to_thread(self._thread.join)

    # On the event loop, called from the thread.

    def _deliver(self, outbox: list[Callable[[], None]]) -> None:
        for deliver in outbox:
            deliver()

    def _die(self, error: BaseException) -> None:
        self.stop(f"the engine has failed: {type(error).__name__}: {error}")

    # On the thread.

    def _run(self) -> None:
        try:
            while not self._closing:
                self._obey(wait=self._replica.num_unfinished == 0)
                if self._replica.num_unfinished:
                    self._poll()
                self.status = self._replica.status
                if self._outbox:
                    self._loop.call_soon_threadsafe(self._deliver, self._outbox)
                    self._outbox = []
        except BaseException as error:  # noqa: BLE001  the server cannot continue, whatever it is
            logger.error(
                "the engine has failed: %s: %s", type(error).__name__, error, exc_info=error
            )
            self._loop.call_soon_threadsafe(self._die, error)

    def _obey(self, wait: bool) -> None:
        try:
            while True:
                self._inbox.get(block=wait)()
                wait = False
        except queue.Empty:
            return

    def _admit(self, generation: Generation) -> None:
        request = generation.request
        self._under_way[request.index] = generation
        self._replica.submit(request, stream=generation.every_token)

    def _give_up(self, generation: Generation) -> None:
        index = generation.request.index
        if self._under_way.pop(index, None) is not None:  # else it has finished meanwhile
            self._replica.cancel(index)

    def _end(self) -> None:
        for generation in list(self._under_way.values()):
            self._give_up(generation)
        self._closing = True

    def _poll(self) -> None:
        for event in self._replica.poll():
            if isinstance(event, NewTokens):
                take = partial(self._under_way[event.index].take, event.token_ids, event.logprobs)
            elif isinstance(event, Completion):
                take = partial(self._under_way.pop(event.index).complete, event)
            else:
                take = partial(self._under_way.pop(event.index).fail, event.error)
            self._outbox.append(take)
