"""The loop between the feed and the sink: keeps the replica full and hands on what it finishes."""

from __future__ import annotations

import time
from typing import Protocol

from vlmbatch.replicas.replica import Completion, Replica, RowFailure
from vlmbatch.stages.answer import Answer
from vlmbatch.stages.feed import RowFeed
from vlmbatch.stages.prepare import Prepared
from vlmbatch.stages.stopping import StopRequest
from vlmbatch.stats import RunStats

_IDLE_SECONDS = 0.5  # between looks at the sink and the stop request while no row is ready
# What an idle engine waits for rows beside the first, so that its first step is a full one: a small
# step would keep the rows behind it waiting, and its launch competes with their preparation.
GATHER_SECONDS = 0.02


class AnswerSink(Protocol):
    """Where answers go, in any order."""

    def put(self, answer: Answer, /) -> None:
        """Take an answer. Raises what became of an earlier one."""
        ...

    def check(self) -> None:
        """Raise what became of an earlier answer, if it went wrong."""
        ...


class AnswerLoop:
    """Runs every row of ``feed`` through ``replica``; each reaches ``sink`` once, in any order."""

    def __init__(
        self,
        feed: RowFeed,
        replica: Replica,
        sink: AnswerSink,
        stats: RunStats,
        stop: StopRequest,
    ) -> None:
        self._feed = feed
        self._replica = replica
        self._sink = sink
        self._stats = stats
        self._stop = stop
        self._under_way: dict[int, Prepared] = {}  # by index
        self._told_of_end = False  # the replica, of the end of the feed

    def run(self) -> None:
        """Answer all rows, or until the stop request ends it: rows are then left unanswered.

        Raises what reading the manifest or writing the output raised.
        """
        while not self._stop.check(self._stats):
            if not self.advance():
                return
        self._stop.announce(self._stats)
        self._replica.drop_waiting()
        while self._replica.num_unfinished and not self._stop.out_of_grace:
            self._hand_on()

    def advance(self) -> bool:
        """Admit what is ready and hand on what is finished, or wait a moment for a row.

        False when every row is answered. Raises as ``run`` does.
        """
        self._fill()
        if self._replica.num_unfinished:
            self._hand_on()
        elif self._feed.exhausted:
            assert not self._under_way, f"rows {sorted(self._under_way)[:9]} have no answer"
            return False
        else:
            self._sink.check()
        return True

    def _fill(self) -> None:
        timeout = 0.0 if self._replica.num_unfinished else _IDLE_SECONDS
        gather_until = 0.0
        while self._replica.wants_requests and not self._stop.check(self._stats):
            prepared = self._feed.poll(timeout)
            if prepared is None:
                break
            self._admit(prepared)
            if timeout and self._replica.num_unfinished:
                gather_until = gather_until or time.monotonic() + GATHER_SECONDS
                is_full = self._replica.fills_step
                timeout = 0.0 if is_full else max(0.0, gather_until - time.monotonic())
        if self._feed.exhausted and not self._told_of_end:
            self._told_of_end = True
            self._replica.expect_no_more()

    def _admit(self, prepared: Prepared) -> None:
        row, request = prepared.row, prepared.request
        self._stats.rows_begun = self._feed.num_begun
        if request is None:
            self._sink.put(Answer(row, error=prepared.error, known=prepared.known))
            return
        self._under_way[request.index] = prepared
        self._replica.submit(request)
        if self._stats.work_started is None:
            self._stats.work_started = time.monotonic()
            self._stats.end_stage("first_row")

    def _hand_on(self) -> None:
        with self._stop.interruptible():
            events = self._replica.poll()
        for event in events:
            if isinstance(event, Completion):
                self._sink.put(self._answer(event))
            elif isinstance(event, RowFailure):
                row = self._under_way.pop(event.index).row
                self._sink.put(Answer(row, error=event.error))

    def _answer(self, completion: Completion) -> Answer:
        self._stats.cached_tokens += completion.cached_tokens
        prepared = self._under_way.pop(completion.index)
        request = prepared.request
        assert request is not None
        return Answer.of(prepared.row, request, completion)
