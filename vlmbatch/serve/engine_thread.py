"""The engine on a thread of its own: requests go in from an event loop, tokens come back to it."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from vlmbatch.engine.outputs import SequenceFailure
from vlmbatch.engine.sequence import Sequence
from vlmbatch.errors import RowError, VlmbatchError
from vlmbatch.log import logger
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.stop_strings import StopChecker
from vlmbatch.types import FinishReason, Request

if TYPE_CHECKING:
    from vlmbatch.engine.engine import Engine


class EngineStoppedError(VlmbatchError):
    """The engine takes no more requests: it is being shut down, or has failed as a whole."""


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """Tokens that have come since the chunk before; ``finish_reason`` is set on the last chunk."""

    token_ids: list[int]
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The engine between two steps. Tokens are totals since the start, except those of the pool."""

    running: int = 0
    waiting: int = 0
    kv_used_tokens: int = 0  # held by running sequences; cached prefixes are free to be taken
    kv_total_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt tokens, those found in the prefix cache
    generation_tokens: int = 0
    preemptions: int = 0


class Generation:
    """A request under way, as the event loop sees it.

    ``first_token_at``: ``time.monotonic()`` of the first token; None before it. ``num_tokens``:
    those that have come so far.
    """

    def __init__(self, request: Request, every_token: bool) -> None:
        self.request = request
        self.every_token = every_token
        self.first_token_at: float | None = None
        self.num_cached_tokens = 0
        self.num_tokens = 0
        self._tokens: list[int] = []
        self._finish_reason: FinishReason | None = None
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
        return TokenChunk(tokens, self._finish_reason)

    def take(self, token_ids: list[int], finish_reason: FinishReason | None) -> None:
        """Add tokens, for the reader to find."""
        self.num_tokens += len(token_ids)
        self._tokens += token_ids
        self._finish_reason = finish_reason
        self._news.set()

    def fail(self, error: VlmbatchError) -> None:
        """End with ``error``, unless it has ended already."""
        if not self.answered and self._error is None:
            self._error = error
            self._news.set()


@dataclass(slots=True)
class _UnderWay:
    """A generation, as the engine's thread sees it."""

    generation: Generation
    checker: StopChecker | None
    unsent: list[int] = field(default_factory=list)


class EngineThread:
    """Owns ``engine``, which is not thread-safe, and runs its steps while there are requests.

    All methods are called on the event loop that made it. Requests that arrive during a step take
    part in the next one; while there are none, the thread sleeps.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._loop = asyncio.get_running_loop()
        self._generations: set[Generation] = set()  # not finished; belongs to the loop
        self._stopped: EngineStoppedError | None = None  # belongs to the loop
        # What follows belongs to the thread.
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outbox: list[Callable[[], None]] = []
        self._under_way: dict[Sequence, _UnderWay] = {}
        self._sequences: dict[Generation, Sequence] = {}
        self._prompt_tokens = self._cached_tokens = self._generation_tokens = 0
        self._closing = False
        self.status = EngineStatus()  # replaced as a whole, so that any thread may read it
        self._publish()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether requests are taken."""
        return self._stopped is None

    @contextmanager
    def generate(self, request: Request, *, every_token: bool) -> Iterator[Generation]:
        """Have a request answered; leaving the block gives up what is not finished of it.

        ``every_token``: tokens come out of each step, and not only all of them at the end.

        Raises:
            EngineStoppedError: no more requests are taken.
        """
        if self._stopped is not None:
            raise self._stopped
        generation = Generation(request, every_token)
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
                self._obey(wait=self._engine.num_unfinished == 0)
                if self._engine.num_unfinished:
                    self._step()
                self._publish()
                if self._outbox:
                    self._loop.call_soon_threadsafe(self._deliver, self._outbox)
                    self._outbox = []
        except BaseException as error:  # noqa: BLE001  nothing is left to go on with, whatever it is
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
        try:
            sequence = self._engine.add(request)
        except RowError as error:
            self._outbox.append(partial(generation.fail, error))
            return
        stop = request.sampling.stop
        checker = StopChecker(self._tokenizer, stop) if stop else None
        self._under_way[sequence] = _UnderWay(generation, checker)
        self._sequences[generation] = sequence

    def _give_up(self, generation: Generation) -> None:
        sequence = self._sequences.get(generation)
        if sequence is not None:  # else it has finished meanwhile
            self._engine.finish(sequence, None)
            self._forget(sequence)

    def _end(self) -> None:
        for generation in list(self._sequences):
            self._give_up(generation)
        self._closing = True

    def _step(self) -> None:
        for output in self._engine.step():
            state = self._under_way.get(output.sequence)
            if state is None:  # a stop string ended it, before a failure of the step ahead
                continue
            if isinstance(output, SequenceFailure):
                self._forget(output.sequence)
                self._outbox.append(partial(state.generation.fail, output.error))
            else:
                self._take(state, output.sequence, output.token_id, output.finish_reason)

    def _take(
        self, state: _UnderWay, sequence: Sequence, token_id: int, reason: FinishReason | None
    ) -> None:
        generation = state.generation
        if generation.first_token_at is None:
            generation.first_token_at = time.monotonic()
            generation.num_cached_tokens = sequence.num_cached_tokens or 0
            self._prompt_tokens += sequence.num_prompt_tokens
            self._cached_tokens += generation.num_cached_tokens
        self._generation_tokens += 1
        state.unsent.append(token_id)
        # A stop string beats the length limit.
        if state.checker is not None and state.checker.push(token_id):
            self._engine.finish(sequence, "stop")
            reason = "stop"
        if reason is not None:
            self._forget(sequence)
        if reason is not None or generation.every_token:
            self._outbox.append(partial(generation.take, state.unsent, reason))
            state.unsent = []

    def _forget(self, sequence: Sequence) -> None:
        del self._sequences[self._under_way.pop(sequence).generation]

    def _publish(self) -> None:
        scheduler = self._engine.scheduler
        pool = scheduler.pool
        waiting = len(scheduler.waiting)
        self.status = EngineStatus(
            running=scheduler.num_unfinished - waiting,
            waiting=waiting,
            kv_used_tokens=(pool.num_granules - pool.num_available) * scheduler.granule,
            kv_total_tokens=pool.num_granules * scheduler.granule,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generation_tokens=self._generation_tokens,
            preemptions=scheduler.num_preemptions,
        )
