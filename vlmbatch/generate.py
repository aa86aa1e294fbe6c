"""The loop between the feed and the sink: keeps the engine full and hands on what it finishes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from vlmbatch.answer import Answer
from vlmbatch.engine.outputs import SequenceFailure, TokenOutput
from vlmbatch.engine.sequence import Sequence
from vlmbatch.errors import RowError
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.prepare import Prepared, RowFeed
from vlmbatch.stats import RunStats
from vlmbatch.stop_strings import StopChecker
from vlmbatch.stopping import StopRequest
from vlmbatch.types import FinishReason, Row

if TYPE_CHECKING:
    from vlmbatch.engine.engine import Engine

_IDLE_SECONDS = 0.5  # between looks at the sink and the stop request while no row is ready
# What an idle engine waits for rows beside the first, so that its first step is a full one: a small
# step would keep the rows behind it waiting, and its launch competes with their preparation.
_GATHER_SECONDS = 0.02


class AnswerSink(Protocol):
    """Where answers go, in any order."""

    def put(self, answer: Answer, /) -> None:
        """Take an answer. Raises what became of an earlier one."""
        ...

    def check(self) -> None:
        """Raise what became of an earlier answer, if it went wrong."""
        ...


class AnswerLoop:
    """Runs every row of ``feed`` through ``engine``; each reaches ``sink`` once, in any order."""

    def __init__(
        self,
        feed: RowFeed,
        engine: Engine,
        tokenizer: Tokenizer,
        sink: AnswerSink,
        stats: RunStats,
        stop: StopRequest,
    ) -> None:
        self._feed = feed
        self._engine = engine
        self._tokenizer = tokenizer
        self._sink = sink
        self._stats = stats
        self._stop = stop
        self._under_way: dict[Sequence, Row] = {}
        self._checkers: dict[Sequence, StopChecker] = {}
        self._told_of_end = False  # the engine, of the end of the feed

    def run(self) -> None:
        """Answer all rows, or until the stop request ends it: rows are then left unanswered.

        Raises what reading the manifest or writing the output raised.
        """
        while not self._stop.check(self._stats):
            if not self.advance():
                return
        self._stop.announce(self._stats)
        for sequence in self._engine.drop_waiting():
            self._forget(sequence)
        while self._engine.num_unfinished and not self._stop.out_of_grace:
            self._step()

    def advance(self) -> bool:
        """Admit what is ready and take one step, or wait a moment for a row.

        False when every row is answered. Raises as ``run`` does.
        """
        self._fill()
        if self._engine.num_unfinished:
            self._step()
        elif self._feed.exhausted:
            return False
        else:
            self._sink.check()
        return True

    def _fill(self) -> None:
        timeout = 0.0 if self._engine.num_unfinished else _IDLE_SECONDS
        gather_until = 0.0
        while self._engine.wants_requests and not self._stop.check(self._stats):
            prepared = self._feed.poll(timeout)
            if prepared is None:
                break
            self._admit(prepared)
            if timeout and self._engine.num_unfinished:
                gather_until = gather_until or time.monotonic() + _GATHER_SECONDS
                is_full = self._engine.fills_step
                timeout = 0.0 if is_full else max(0.0, gather_until - time.monotonic())
        if self._feed.exhausted and not self._told_of_end:
            self._told_of_end = True
            self._engine.expect_no_more()

    def _admit(self, prepared: Prepared) -> None:
        row, request = prepared.row, prepared.request
        self._stats.rows_begun = self._feed.num_begun
        if request is None:
            self._sink.put(Answer(row, error=prepared.error, known=prepared.known))
            return
        try:
            sequence = self._engine.add(request)
        except RowError as error:
            self._sink.put(Answer(row, error=error))
            return
        self._under_way[sequence] = row
        if request.sampling.stop:
            self._checkers[sequence] = StopChecker(self._tokenizer, request.sampling.stop)
        if self._stats.engine_started is None:
            self._stats.engine_started = time.monotonic()

    def _step(self) -> None:
        with self._stop.interruptible():
            outputs = self._engine.step()
        for output in outputs:
            if output.sequence not in self._under_way:
                continue  # a stop string ended it; this is of a step that was launched before
            if isinstance(output, SequenceFailure):
                row = self._forget(output.sequence)
                self._sink.put(Answer(row, error=output.error))
            else:
                self._take(output)

    def _take(self, output: TokenOutput) -> None:
        sequence = output.sequence
        checker = self._checkers.get(sequence)
        # A stop string beats the length limit.
        if checker is not None and (text_end := checker.push(output.token_id)) is not None:
            self._engine.finish(sequence, "stop")
            self._sink.put(self._answer(sequence, "stop", text_end))
        elif output.finish_reason is not None:
            self._sink.put(self._answer(sequence, output.finish_reason))

    def _answer(
        self, sequence: Sequence, reason: FinishReason, text_end: int | None = None
    ) -> Answer:
        self._stats.cached_tokens += sequence.num_cached_tokens or 0
        request = sequence.request
        return Answer(
            self._forget(sequence),
            tuple(sequence.output_token_ids),
            reason,
            prompt_token_ids=request.token_ids,
            cached_tokens=sequence.num_cached_tokens or 0,
            image_tokens=request.num_image_tokens,
            text_end=text_end,
        )

    def _forget(self, sequence: Sequence) -> Row:
        self._checkers.pop(sequence, None)
        return self._under_way.pop(sequence)
