"""Batches of rows answered by transformers, as a replica. No torch."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Collection, Hashable

from vlmbatch.engine.grammars import Grammars
from vlmbatch.errors import RowError
from vlmbatch.hf.batch_thread import BatchThread, Generator
from vlmbatch.hf.row import RowUnderWay
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.replicas.messages import EngineLimits
from vlmbatch.replicas.replica import (
    Completion,
    Event,
    NewTokens,
    OnBegin,
    ReplicaStatus,
    RowFailure,
)
from vlmbatch.types import Request

_POLL_SECONDS = 0.1  # that a poll waits for news
_GATHER_SECONDS = 0.1  # since the last request came, before a batch begins that is not full
_LONGEST_GATHERING = 10  # times as long at most, since the first of them came
_WINDOW_BATCHES = 4  # that wait, to choose rows of about one length from
_WAITING_BYTES = 2**29  # of the processor's tensors, and one row


class HfReplica:
    """A ``Replica`` whose batches ``generator`` answers, at most ``max_num_seqs`` rows in each.

    Rows whose ``signature`` is equal may be in one batch. ``on_start`` is called on the generating
    thread before the first. ``on_cpu`` tells where the model is. An idle replica waits
    ``gather_seconds`` for requests beside those it has. ``on_begin`` is told of each batch's rows.
    ``grammars``: for requests that have one.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        signature: Callable[[Request], Hashable],
        *,
        eos_token_ids: Collection[int],
        max_model_len: int,
        max_num_seqs: int,
        on_cpu: bool = True,
        on_start: Callable[[], None] = lambda: None,
        gather_seconds: float = _GATHER_SECONDS,
        on_begin: OnBegin | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        self._max_model_len = max_model_len
        self._on_cpu = on_cpu
        self._thread = BatchThread(generator, max_num_seqs, on_start)
        self._tokenizer = tokenizer
        self._signature = signature
        self._eos_token_ids = frozenset(eos_token_ids)
        self._gather_seconds = gather_seconds
        self._on_begin = on_begin
        self._grammars = grammars
        self._refused: list[RowFailure] = []  # that ``poll`` has not returned yet
        self._no_more = False  # requests are to come
        self._first_at = self._last_at = 0.0  # when the requests that wait were submitted
        self._rows: dict[int, RowUnderWay] = {}  # that have not ended, by index
        self._waiting: dict[int, RowUnderWay] = {}  # of these, in no batch yet; oldest first
        self._waiting_bytes = 0
        self._prompt_tokens = self._generation_tokens = self._answered = 0

    @property
    def limits(self) -> EngineLimits:
        """What it takes; it holds whatever the context does."""
        context = self._max_model_len
        return EngineLimits(self._max_waiting, context, context, on_cpu=self._on_cpu)

    @property
    def _max_waiting(self) -> int:
        """Requests that may usefully wait, to choose batches from."""
        return _WINDOW_BATCHES * self._thread.max_rows

    @property
    def num_unfinished(self) -> int:
        return len(self._rows) + len(self._refused)

    @property
    def wants_requests(self) -> bool:
        return len(self._waiting) < self._max_waiting and self._waiting_bytes < _WAITING_BYTES

    @property
    def fills_step(self) -> bool:
        return len(self._waiting) >= self._thread.max_rows

    @property
    def status(self) -> ReplicaStatus:
        return ReplicaStatus(
            running=len(self._rows) - len(self._waiting),
            waiting=len(self._waiting),
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            answered=self._answered,
        )

    def submit(self, request: Request, *, stream: bool = False) -> None:
        index = request.index
        assert index not in self._rows, "two requests of one index"
        try:
            row = RowUnderWay(
                *(request, self._tokenizer, self._eos_token_ids, self._max_model_len),
                stream=stream,
                grammars=self._grammars,
            )
        except RowError as error:
            self._refused.append(RowFailure(index, error))
            return
        self._no_more = False
        self._last_at = time.monotonic()
        if not self._waiting:
            self._first_at = self._last_at
        self._rows[index] = self._waiting[index] = row
        self._waiting_bytes += _num_bytes(row)

    def poll(self) -> list[Event]:
        if not self._thread.is_busy and self._waiting and self._is_gathered():
            self._start_batch()
        events: list[Event] = [*self._refused]
        self._refused.clear()
        if events:
            timeout = 0.0
        elif self._thread.is_busy:
            timeout = _POLL_SECONDS
        else:
            timeout = min(self._gather_seconds, _POLL_SECONDS) / 4 if self._waiting else 0.0
        while True:
            try:
                news = self._thread.next_news(timeout)
            except queue.Empty:
                return events
            timeout = 0.0
            if news is not None:
                events += self._tell(*news)
            elif self._waiting:
                self._start_batch()

    def cancel(self, index: int) -> None:
        self._refused = [failure for failure in self._refused if failure.index != index]
        row = self._rows.get(index)
        if row is not None:
            row.ended = True  # the batch that it is in goes on without it
            self._forget(row)

    def drop_waiting(self) -> None:
        for row in list(self._waiting.values()):
            self._forget(row)

    def take_back(self, most: int) -> list[int]:
        rows = list(self._waiting.values())
        taken = rows[max(0, len(rows) - most) :]
        for row in taken:
            self._forget(row)
        return [row.request.index for row in taken]

    def expect_no_more(self) -> None:
        self._no_more = True

    def reset(self) -> None:
        self._thread.give_up()
        self._rows.clear()
        self._waiting.clear()
        self._refused.clear()
        self._waiting_bytes = 0

    def close(self) -> None:
        """Give up every request and end the thread. It may be called again."""
        self.reset()
        self._thread.close()

    def _tell(self, row: RowUnderWay, event: Event) -> list[Event]:
        """What came of a row, unless it was given up meanwhile."""
        if self._rows.get(row.request.index) is not row:
            return []
        if isinstance(event, NewTokens):
            return [event]
        if isinstance(event, Completion):
            self._prompt_tokens += row.num_prompt_tokens
            self._generation_tokens += len(event.token_ids)
            self._answered += row.request.is_row
        self._forget(row)
        return [event]

    def _forget(self, row: RowUnderWay) -> None:
        index = row.request.index
        del self._rows[index]
        if self._waiting.pop(index, None) is not None:
            self._waiting_bytes -= _num_bytes(row)

    def _is_gathered(self) -> bool:
        """Whether to begin with what there is: a batch of few rows keeps many waiting."""
        if self._no_more or self.fills_step or not self.wants_requests:
            return True
        now = time.monotonic()
        return (
            now - self._last_at >= self._gather_seconds
            or now - self._first_at >= _LONGEST_GATHERING * self._gather_seconds
        )

    def _start_batch(self) -> None:
        batch = self._choose()
        for row in batch:
            del self._waiting[row.request.index]
            self._waiting_bytes -= _num_bytes(row)
        if self._on_begin is not None:
            self._on_begin([row.request.index for row in batch])
        self._thread.begin(batch)

    def _choose(self) -> list[RowUnderWay]:
        """The row that has waited longest, and those most like it in length; shortest first."""
        oldest = next(iter(self._waiting.values()))
        kind = self._signature(oldest.request)
        alike = [row for row in self._waiting.values() if self._signature(row.request) == kind]
        alike.sort(key=lambda row: abs(row.num_prompt_tokens - oldest.num_prompt_tokens))
        # Rows of one length stay in the order in which they came: the oldest is the first.
        return sorted(alike[: self._thread.max_rows], key=lambda row: row.num_prompt_tokens)


def _num_bytes(row: RowUnderWay) -> int:
    return 0 if row.request.inputs is None else row.request.inputs.num_bytes
