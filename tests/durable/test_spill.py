"""What waits comes back as it was, from wherever it waited, within the bounds on memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.durable.spill import Spill
from vlmbatch.errors import ErrorCode, OutputError, RowError
from vlmbatch.types import ImageRef, Result, Row

# True puts an object in; a number takes the one out that stands there among those that wait.
STEPS = st.lists(st.one_of(st.just(True), st.floats(0, 0.999)), max_size=200)


def result(index: int) -> Result:
    return Result(index, str(index), "text " * (index * 37 % 11), extra={"note": index})


@given(STEPS, st.integers(0, 3), st.sampled_from([0, 400, 10**6]))
def test_what_is_put_in_comes_out_once(steps, loose, max_bytes):
    spill: Spill[Result] = Spill(max_bytes, loose=loose, segment_bytes=300)
    waiting = []
    for number, step in enumerate(steps):
        if step is True:
            waiting.append((number, spill.put(result(number))))
        elif waiting:
            index, ticket = waiting.pop(int(step * len(waiting)))
            assert spill.take(ticket) == result(index)
        assert 0 <= spill.num_bytes <= max_bytes
        assert sum(isinstance(ticket, Result) for _, ticket in waiting) <= loose
        on_disk = sum(isinstance(ticket, int) for _, ticket in waiting)
        assert spill.num_segments <= on_disk, "a file is kept that nothing in it is needed of"
    for index, ticket in waiting:
        assert spill.take(ticket) == result(index)
    assert spill.num_bytes == spill.num_segments == 0


def test_rows_come_back_whole(tmp_path):
    row = Row(
        7,
        "id",
        8,
        "m.jsonl",
        messages=[{"role": "user", "content": "käse"}],
        images=(ImageRef("label", b"\xff\xd8"), ImageRef("a.jpg")),
        extra={"nested": {"list": [1, None, 2.5]}},
        error=RowError(ErrorCode.IMAGE_INVALID, "no"),
    )
    spill: Spill[Row] = Spill(0, tmp_path, loose=0)
    back = spill.take(spill.put(row))
    assert (back.error.code, back.error.message) == (row.error.code, row.error.message)
    assert back.images == row.images and back.messages == row.messages and back.extra == row.extra


def test_large_objects_are_read_back_from_the_file(tmp_path):
    spill: Spill[Result] = Spill(0, tmp_path, loose=0)
    texts = [chr(97 + index) * 300_000 for index in range(5)]
    tickets = [spill.put(Result(index, "", text)) for index, text in enumerate(texts)]
    assert list(tmp_path.iterdir()) == [], "the files have no names"
    assert [spill.take(ticket).text for ticket in reversed(tickets)] == texts[::-1]


def test_a_full_disk_is_told_with_the_folder(tmp_path, monkeypatch):
    spill: Spill[Result] = Spill(0, tmp_path, loose=0)

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match=f"{tmp_path}.*No space left.*Free space"):
        spill.put(Result(0, "", "x" * 300_000))


def test_a_folder_that_is_gone_is_told(tmp_path):
    spill: Spill[Result] = Spill(0, tmp_path / "gone", loose=0)
    with pytest.raises(OutputError, match="gone cannot be written"):
        spill.put(Result(0, ""))


def test_without_a_folder_it_is_that_of_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    spill: Spill[Result] = Spill(0, None, loose=0)
    with pytest.raises(OutputError, match=str(Path("gone cannot"))):
        spill.put(Result(0, ""))
