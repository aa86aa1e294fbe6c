"""Feed, engine and sink together, on the fake model: every row comes out once, as it should."""

from __future__ import annotations

import threading
import time
from collections import abc
from dataclasses import replace
from typing import Any

import pytest
from fake_model import reference, small_engine

from vlmbatch.config import SamplingParams
from vlmbatch.engine.engine import Engine
from vlmbatch.engine.outputs import SequenceFailure, TokenOutput
from vlmbatch.engine.sequence import Sequence
from vlmbatch.engine.step import ScheduledChunk
from vlmbatch.errors import ErrorCode, OutputError, RowError
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.replicas.local import LocalReplica
from vlmbatch.replicas.replica import Event
from vlmbatch.stages.answer import Answer
from vlmbatch.stages.answer_loop import AnswerLoop
from vlmbatch.stages.feed import RowFeed
from vlmbatch.stages.prepare import Prepared
from vlmbatch.stages.sink import ResultSink
from vlmbatch.stages.stopping import RunStoppedError, StopRequest
from vlmbatch.stats import RunStats
from vlmbatch.types import Request, Result, Row

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class LetterTokenizer(Tokenizer):
    """Token n is a letter, so that texts are easy to reason about."""

    def __init__(self) -> None:
        """No vocabulary."""

    def decode(self, ids: abc.Sequence[int]) -> str:
        return "".join(LETTERS[i % 26] for i in ids)

    def has_text(self, token_id: int) -> bool:
        return True

    def is_byte(self, token_id: int) -> bool:
        return False

    def token_text(self, token_id: int) -> str:
        return LETTERS[token_id % 26]


class ListWriter:
    def __init__(self, fail_after: int | None = None) -> None:
        self.results: list[Result] = []
        self.fail_after = fail_after

    def write(self, result: Result) -> None:
        if len(self.results) == self.fail_after:
            raise OutputError("disk full")
        self.results.append(result)

    def close(self) -> None:
        raise AssertionError("the caller commits, not the sink")

    def abort(self) -> None:
        raise AssertionError("the caller aborts, not the sink")


def loop_engine() -> Engine:
    return small_engine(max_num_seqs=8, max_batched_tokens=32)


def local_replica(engine: Engine | OneStepEngine) -> LocalReplica:
    return LocalReplica(engine, LetterTokenizer())  # type: ignore[arg-type]


def run_rows(
    prepared: list[Prepared],
    writer: ListWriter,
    window: int = 64,
    stop: StopRequest | None = None,
) -> RunStats:
    stats = RunStats()
    by_index = {each.row.index: each for each in prepared}
    feed = RowFeed(
        (each.row for each in prepared),
        lambda row: by_index[row.index],
        threads=2,
        depth=16,
        window=window,
    )
    sink = ResultSink(writer, LetterTokenizer(), stats, written=feed.release)
    try:
        engine = loop_engine()
        AnswerLoop(feed, local_replica(engine), sink, stats, stop or StopRequest()).run()
        sink.flush()
        engine.scheduler.check_integrity()
    finally:
        feed.close()
        sink.close()
    return stats


def row_of(index: int, tokens: list[int], **sampling: Any) -> Prepared:
    row = Row(index, f"id-{index}", index + 1, "m.jsonl", extra={"note": index})
    return Prepared(row, Request(index, tokens, SamplingParams(**sampling)))


def test_every_row_comes_out_once_in_order_with_its_own_answer() -> None:
    rows = [row_of(i, [i % 7, i % 5, 1], max_tokens=1 + i % 13) for i in range(200)]
    bad = RowError(ErrorCode.IMAGE_MISSING, "no file")
    rows[17] = Prepared(rows[17].row, error=bad)
    rows[18] = row_of(18, [1] * 300)
    writer = ListWriter()
    stats = run_rows(rows, writer, window=12)
    assert [result.index for result in writer.results] == list(range(200))
    assert [result.extra for result in writer.results] == [{"note": i} for i in range(200)]
    assert writer.results[17].error_code is ErrorCode.IMAGE_MISSING
    assert writer.results[18].error_code is ErrorCode.PROMPT_TOO_LONG
    for prepared, result in zip(rows, writer.results, strict=True):
        if result.status == "ok":
            tokens = reference(prepared.request, prepared.request.sampling.max_tokens)
            assert result.text == LetterTokenizer().decode(tuple(tokens))
            assert result.completion_tokens == len(tokens)
    assert stats.rows_done == 200 and stats.num_errors == 2
    assert stats.completion_tokens == sum(r.completion_tokens or 0 for r in writer.results)


def test_stop_strings_end_the_row_and_are_cut_off() -> None:
    plain = row_of(0, [2, 3], max_tokens=30, ignore_eos=True)
    text = LetterTokenizer().decode(tuple(reference(plain.request, 30)))
    stop = text[5:8]
    end = text.index(stop)
    writer = ListWriter()
    run_rows([row_of(0, [2, 3], max_tokens=30, ignore_eos=True, stop=("###", stop))], writer)
    (result,) = writer.results
    assert result.text == text[:end]
    assert result.finish_reason == "stop"
    assert result.completion_tokens == end + len(stop)


class OneStepEngine:
    """Gives all its outputs of its one request in one step, as when what was ahead is drained."""

    def __init__(self, token_ids: list[int], failure: RowError | None) -> None:
        self.token_ids = token_ids
        self.failure = failure
        self.sequence: Sequence | None = None
        self.finished: list[Sequence] = []

    @property
    def num_unfinished(self) -> int:
        return int(self.sequence is not None)

    @property
    def wants_requests(self) -> bool:
        return self.sequence is None

    fills_step = True

    def expect_no_more(self) -> None:
        pass

    def add(self, request: Request) -> Sequence:
        self.sequence = Sequence(request, 100, frozenset())
        return self.sequence

    def step(self) -> list[TokenOutput | SequenceFailure]:
        sequence, self.sequence = self.sequence, None
        assert sequence is not None
        outputs: list[TokenOutput | SequenceFailure] = []
        for token_id in self.token_ids:
            sequence.advance(sequence.num_uncomputed_tokens)
            sequence.resolve(token_id)
            outputs.append(TokenOutput(sequence, token_id, sequence.finish_reason))
        if self.failure is not None:
            outputs.append(SequenceFailure(sequence, self.failure))
        return outputs

    def finish(self, sequence: Sequence, reason: str) -> None:
        self.finished.append(sequence)


@pytest.mark.parametrize(
    ("token_ids", "failure"),
    [
        ([1, 2], RowError(ErrorCode.ENGINE_ERROR, "the step ahead failed")),
        ([1, 2, 3], None),  # the last by its length
    ],
)
def test_what_comes_behind_a_stop_string_in_the_same_step_does_not_count(
    token_ids: list[int], failure: RowError | None
) -> None:
    prepared = row_of(0, [4, 5], max_tokens=3, stop=("bc",))
    feed = RowFeed(iter([prepared.row]), lambda row: prepared, threads=1, depth=1, window=1)
    writer, stats = ListWriter(), RunStats()
    sink = ResultSink(writer, LetterTokenizer(), stats, written=feed.release)
    engine = OneStepEngine(token_ids, failure)
    try:
        AnswerLoop(feed, local_replica(engine), sink, stats, StopRequest()).run()
        sink.flush()
    finally:
        feed.close()
        sink.close()
    (result,) = writer.results
    assert (result.status, result.text, result.finish_reason) == ("ok", "", "stop")
    assert result.completion_tokens == 2
    assert len(engine.finished) == 1


def test_a_writer_that_fails_ends_the_run_with_its_error() -> None:
    rows = [row_of(i, [1, 2], max_tokens=2) for i in range(500)]
    before = threading.active_count()
    with pytest.raises(OutputError, match="disk full"):
        run_rows(rows, ListWriter(fail_after=20), window=30)
    assert threading.active_count() == before


class PatientFeed(RowFeed):
    """Gives its rows only to who is willing to wait for them, as if each took a moment."""

    def __init__(self, rows: list[Prepared]) -> None:
        self._prepared = rows
        self._num_begun = len(rows)

    @property
    def num_begun(self) -> int:
        return self._num_begun

    @property
    def exhausted(self) -> bool:
        return not self._prepared

    def poll(self, timeout: float) -> Prepared | None:
        return self._prepared.pop(0) if self._prepared and timeout > 0 else None


def test_an_idle_engine_waits_for_the_rows_of_a_full_step_and_a_busy_one_for_none() -> None:
    engine = loop_engine()
    steps: list[int] = []
    step = engine.step

    def counted_step() -> list[TokenOutput | SequenceFailure]:
        steps.append(engine.num_unfinished)
        return step()

    engine.step = counted_step  # type: ignore[method-assign]
    rows = [row_of(i, [1] * 10, max_tokens=2, ignore_eos=True) for i in range(6)]
    writer, stats = ListWriter(), RunStats()
    sink = ResultSink(writer, LetterTokenizer(), stats, written=lambda: None)
    try:
        AnswerLoop(PatientFeed(rows), local_replica(engine), sink, stats, StopRequest()).run()
        sink.flush()
    finally:
        sink.close()
    assert len(writer.results) == 6
    assert steps[0] == 4, "32 tokens fill a step"
    assert steps[1] == 4, "nothing is waited for while there is work"


class SlowFeed(PatientFeed):
    """Has the next row just before the patience of who waits for it ends."""

    def poll(self, timeout: float) -> Prepared | None:
        time.sleep(min(timeout, 0.012))
        return super().poll(timeout)


def test_rows_that_come_one_by_one_do_not_keep_the_first_waiting() -> None:
    engine = loop_engine()
    waited: list[int] = []
    step = engine.step

    def counted_step() -> list[TokenOutput | SequenceFailure]:
        waited.append(len(engine.scheduler.waiting))
        return step()

    engine.step = counted_step  # type: ignore[method-assign]
    rows = [row_of(i, [1], max_tokens=1) for i in range(30)]
    sink = ResultSink(ListWriter(), LetterTokenizer(), RunStats(), written=lambda: None)
    try:
        loop = AnswerLoop(SlowFeed(rows), local_replica(engine), sink, RunStats(), StopRequest())
        loop.run()
        sink.flush()
    finally:
        sink.close()
    assert max(waited) <= 4


def test_long_answers_begin_first_once_all_rows_are_there() -> None:
    engine = loop_engine()
    begun: list[int] = []
    schedule = engine.scheduler.schedule

    def watched_schedule() -> list[ScheduledChunk]:
        chunks = schedule()
        begun.extend(c.sequence.request.index for c in chunks if c.start == 0)
        return chunks

    engine.scheduler.schedule = watched_schedule  # type: ignore[method-assign]
    lengths = [1, 9, 3, 9, 30, 2]
    rows = [row_of(i, [1], max_tokens=n, ignore_eos=True) for i, n in enumerate(lengths)]
    sink = ResultSink(ListWriter(), LetterTokenizer(), RunStats(), written=lambda: None)
    try:
        feed = PatientFeed(rows)
        AnswerLoop(feed, local_replica(engine), sink, RunStats(), StopRequest()).run()
        sink.flush()
    finally:
        sink.close()
    assert begun == [4, 1, 3, 2, 5, 0]


class ForgetfulReplica(LocalReplica):
    """Has done with its rows, and tells of none."""

    def poll(self) -> list[Event]:
        super().poll()
        return []


def test_a_row_that_the_replica_loses_does_not_count_as_answered() -> None:
    row, writer, stats = row_of(0, [1], max_tokens=2), ListWriter(), RunStats()
    feed = RowFeed(iter([row.row]), lambda _: row, threads=1, depth=1, window=1)
    sink = ResultSink(writer, LetterTokenizer(), stats, written=feed.release)
    replica = ForgetfulReplica(loop_engine(), LetterTokenizer())
    try:
        with pytest.raises(AssertionError, match=r"rows \[0\] have no answer"):
            AnswerLoop(feed, replica, sink, stats, StopRequest()).run()
    finally:
        feed.close()
        sink.close()


class SilentFeed(RowFeed):
    """Has a row to come, always, and never the row."""

    def __init__(self) -> None:
        self.polls = 0

    @property
    def exhausted(self) -> bool:
        return False

    def poll(self, timeout: float) -> None:
        self.polls += 1
        assert self.polls < 500, "the run goes on waiting for rows"
        time.sleep(0.01)


def test_a_writer_that_fails_while_no_row_comes_ends_the_run() -> None:
    stats = RunStats()
    sink = ResultSink(ListWriter(fail_after=0), LetterTokenizer(), stats, written=lambda: None)
    try:
        sink.put(Answer(row_of(0, [1]).row, error=RowError(ErrorCode.IMAGE_MISSING, "no file")))
        loop = AnswerLoop(SilentFeed(), local_replica(loop_engine()), sink, stats, StopRequest())
        with pytest.raises(OutputError, match="disk full"):
            loop.run()
    finally:
        sink.close()


@pytest.mark.timeout(20)
def test_a_writer_that_fails_while_its_queue_is_full_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class StuckWriter(ListWriter):
        def write(self, result: Result) -> None:
            assert released.wait(10)
            raise OutputError("disk full")

    released = threading.Event()
    monkeypatch.setattr("vlmbatch.stages.sink._DEPTH", 2)
    sink = ResultSink(StuckWriter(), LetterTokenizer(), RunStats(), written=lambda: None)
    timer = threading.Timer(0.2, released.set)
    timer.start()
    try:
        with pytest.raises(OutputError, match="disk full"):
            for index in range(4):  # one with the writer, two in the queue, one that has no place
                missing = RowError(ErrorCode.IMAGE_MISSING, "no file")
                sink.put(Answer(row_of(index, [1]).row, error=missing))
    finally:
        timer.join()
        sink.close()


class StopAfter(StopRequest):
    """Stops once so many rows are done."""

    def __init__(self, rows: int, grace_s: float) -> None:
        super().__init__(grace_s)
        self.rows = rows

    def check(self, stats: RunStats) -> bool:
        if stats.rows_done >= self.rows:
            self.request(RunStoppedError("enough", 143))
        return super().check(stats)


@pytest.mark.parametrize("grace_s", [20.0, 0.0])
def test_a_stopped_run_hands_on_what_it_finished_and_nothing_twice(grace_s: float) -> None:
    rows = [row_of(i, [1 + i % 3, 2], max_tokens=6, ignore_eos=True) for i in range(400)]
    writer = ListWriter()
    stats = run_rows(rows, writer, stop=StopAfter(30, grace_s))
    indexes = [result.index for result in writer.results]
    assert 30 <= len(indexes) < 200
    assert indexes == list(range(len(indexes)))
    assert stats.rows_done >= len(indexes)
    for result in writer.results:
        tokens = reference(rows[result.index].request, 6)
        assert result.text == LetterTokenizer().decode(tuple(tokens))


def test_too_many_errors_stop_the_run_and_name_the_commonest() -> None:
    bad = RowError(ErrorCode.IMAGE_MISSING, "no file")
    rows = [row_of(i, [1, 2], max_tokens=2) for i in range(2000)]
    rows = [Prepared(each.row, error=bad) if each.row.index % 10 == 0 else each for each in rows]
    stop = StopRequest(max_error_rate=0.05)
    stats = run_rows(rows, ListWriter(), stop=stop)
    assert stop.reason is not None and stop.reason.exit_status == 1
    assert "5.0%" in str(stop.reason) and "image_missing" in str(stop.reason)
    assert 200 <= stats.rows_done < 1500
    within = StopRequest(max_error_rate=0.11)
    assert run_rows(rows, ListWriter(), stop=within).rows_done == 2000 and within.reason is None


def test_errors_of_an_earlier_run_do_not_count_against_the_budget() -> None:
    failed = Result(0, "id", error_code=ErrorCode.IMAGE_MISSING, error_message="no file")
    rows = [row_of(i, [1, 2], max_tokens=2) for i in range(600)]
    rows = [
        Prepared(each.row, known=replace(failed, index=each.row.index))
        if each.row.index < 300
        else each
        for each in rows
    ]
    stop = StopRequest(max_error_rate=0.05)
    stats = run_rows(rows, ListWriter(), stop=stop)
    assert stop.reason is None
    assert (stats.rows_done, stats.rows_resumed, stats.num_errors) == (600, 300, 300)


def test_a_deadline_stops_the_run_as_sigterm_does() -> None:
    rows = [row_of(i, [1, 2], max_tokens=2) for i in range(300)]
    stop = StopRequest(deadline_s=0.0)
    assert run_rows(rows, ListWriter(), stop=stop).rows_done == 0
    assert stop.reason is not None and stop.reason.exit_status == 143
