"""Counting a journal, whatever state it is in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.durable.journal_writer import JournalWriter, list_segments
from vlmbatch.errors import ErrorCode, OutputError
from vlmbatch.output.journal_counts import read_journal_counts
from vlmbatch.types import ErrorExample, Result

RUN = b"r" * 16
NUM_ROWS = 20
MESSAGES = ["no file", "", 'ends as an answer does: ,null,null]"', "\udce9"]


def answer(row: int) -> Result:
    return Result(row, f"id-{row}", ",null,null]", "stop", 5, 0, 3)


def error(row: int, code: ErrorCode, message: str = "no file") -> Result:
    return Result(row, f"id-{row}", error_code=code, error_message=message)


def write(folder: Path, results: Sequence[Result], run_id: bytes = RUN, **options: Any) -> None:
    with JournalWriter(folder, run_id, **options) as writer:
        for result in results:
            writer.append(result)


errors = st.builds(
    error, st.integers(0, NUM_ROWS - 1), st.sampled_from(ErrorCode), st.sampled_from(MESSAGES)
)
results = st.lists(st.builds(answer, st.integers(0, NUM_ROWS - 1)) | errors, max_size=30)


@given(appended=results, segment_bytes=st.sampled_from([1, 300, 10_000]))
def test_the_last_result_of_a_row_counts(
    tmp_path_factory: pytest.TempPathFactory, appended: list[Result], segment_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    write(folder, appended, segment_bytes=segment_bytes)
    last = {result.index: result for result in appended}
    counts = read_journal_counts(folder, RUN, NUM_ROWS)
    assert counts.num_rows == len(last)
    wanted = [result.error_code for result in last.values() if result.error_code is not None]
    assert counts.errors == {code: wanted.count(code) for code in wanted}
    assert counts.error_examples.keys() == counts.errors.keys()


def test_the_example_is_the_first_row_and_not_the_first_done(tmp_path: Path) -> None:
    code = ErrorCode.IMAGE_MISSING
    write(tmp_path, [error(7, code, "late"), error(3, code, "early"), error(5, code)])
    counts = read_journal_counts(tmp_path, RUN, NUM_ROWS)
    assert counts.error_examples == {code: ErrorExample(3, "id-3", "early")}


def test_a_write_under_way_and_other_runs_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, [error(9, ErrorCode.ENGINE_ERROR)], run_id=b"o" * 16)
    write(tmp_path, [answer(0), answer(1)])
    segment = list_segments(tmp_path)[-1][1]
    segment.write_bytes(segment.read_bytes()[:-5])
    before = segment.read_bytes()
    counts = read_journal_counts(tmp_path, RUN, NUM_ROWS)
    assert (counts.num_rows, counts.errors) == (1, {})
    assert segment.read_bytes() == before


def test_a_row_that_the_run_does_not_have(tmp_path: Path) -> None:
    write(tmp_path, [answer(4)])
    with pytest.raises(OutputError, match="holds row 4, but the run has 4 rows"):
        read_journal_counts(tmp_path, RUN, 4)


def test_a_segment_that_vanishes_is_told_from_one_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [answer(4)])

    def gone(path: Path) -> bytes:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Path, "read_bytes", gone)
    with pytest.raises(OutputError, match="No such file") as caught:
        read_journal_counts(tmp_path, RUN, NUM_ROWS)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
