"""Feed, engine and sink together, on the fake model: every row comes out once, as it should."""

from __future__ import annotations

import threading

import pytest
import torch
from fake_model import FakeBackend, FakeModel, fake_config, reference

from vlmbatch.config import EngineConfig, SamplingParams
from vlmbatch.engine.engine import Engine
from vlmbatch.errors import ErrorCode, OutputError, RowError
from vlmbatch.generate import answer_rows
from vlmbatch.prepare import Prepared, RowFeed
from vlmbatch.sink import ResultSink
from vlmbatch.stats import RunStats
from vlmbatch.stop_strings import cut_at_stop
from vlmbatch.types import Request, Result, Row

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class LetterTokenizer:
    """Token n is a letter, so that texts are easy to reason about."""

    def decode(self, ids: tuple[int, ...]) -> str:
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
        self.closed = False
        self.fail_after = fail_after

    def write(self, result: Result) -> None:
        if len(self.results) == self.fail_after:
            raise OutputError("disk full")
        self.results.append(result)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        raise AssertionError("the caller aborts, not the sink")


def make_engine() -> Engine:
    return Engine(
        FakeModel(),
        fake_config(),
        EngineConfig(kv_cache_tokens=400, max_num_seqs=8, max_batched_tokens=32),
        FakeBackend(),
        torch.device("cpu"),
        torch.float64,
    )


def run_rows(prepared: list[Prepared], writer: ListWriter, window: int = 64) -> RunStats:
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
        answer_rows(feed, make_engine(), LetterTokenizer(), sink, stats)
        sink.close()
    finally:
        feed.close()
        sink.stop()
    return stats


def row_of(index: int, tokens: list[int], **sampling: object) -> Prepared:
    row = Row(index, f"id-{index}", index + 1, "m.jsonl", extra={"note": index})
    return Prepared(row, Request(index, tokens, SamplingParams(**sampling)))


def test_every_row_comes_out_once_in_order_with_its_own_answer() -> None:
    rows = [row_of(i, [i % 7, i % 5, 1], max_tokens=1 + i % 13) for i in range(200)]
    bad = RowError(ErrorCode.IMAGE_MISSING, "no file")
    rows[17] = Prepared(rows[17].row, error=bad)
    rows[18] = row_of(18, [1] * 300)
    writer = ListWriter()
    stats = run_rows(rows, writer, window=12)
    assert writer.closed
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


def test_a_writer_that_fails_ends_the_run_with_its_error() -> None:
    rows = [row_of(i, [1, 2], max_tokens=2) for i in range(500)]
    before = threading.active_count()
    with pytest.raises(OutputError, match="disk full"):
        run_rows(rows, ListWriter(fail_after=20), window=30)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("one two", ("four",), "one two"),
        ("one two", (), "one two"),
        ("two", ("two",), ""),
    ],
)
def test_cut_at_the_earliest_stop_string(text: str, stop: tuple[str, ...], expected: str) -> None:
    assert cut_at_stop(text, stop) == expected
