"""The journal gives back what was acknowledged, and nothing else, whatever became of its bytes."""

from __future__ import annotations

import shutil
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from failing_files import UnsyncedFiles, VolatileFiles
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlmbatch.durable import journal as journal_module
from vlmbatch.durable.journal import Journal
from vlmbatch.durable.journal_frames import (
    FRAME_BYTES,
    HEADER_BYTES,
    encode_frame,
    scan_segment,
    segment_header,
    segment_salt,
)
from vlmbatch.durable.journal_writer import JournalWriter, list_segments, segment_path
from vlmbatch.errors import ErrorCode, OutputError
from vlmbatch.types import Result, Row

RUN = b"this run's bytes"
OTHER_RUN = b"another's bytes."
NUM_ROWS = 12

unhurried = settings(deadline=None)  # they wait for the disk

# Surrogates alone and in pairs, NUL, a quote, and all else.
texts = st.text(st.sampled_from('\ud83d\ude00\0"') | st.characters(), max_size=20)
counts = st.none() | st.integers(0, 2**31 - 1)
results = st.builds(
    Result,
    index=st.integers(0, NUM_ROWS - 1),
    id=texts,
    text=st.none() | texts,
    finish_reason=st.sampled_from([None, "stop", "length"]),
    prompt_tokens=counts,
    image_tokens=counts,
    completion_tokens=counts,
    error_code=st.none() | st.sampled_from(ErrorCode),
    error_message=st.none() | texts,
)


def answer(row: int, text: str = "yes") -> Result:
    return Result(row, f"id-{row}", text, "stop", 600, 576, 2)


def open_writer(folder: Path, run_id: bytes = RUN, **options) -> JournalWriter:
    return JournalWriter(folder, run_id, files=UnsyncedFiles(), **options)


def recover(folder: Path, num_rows: int = NUM_ROWS) -> Journal:
    return Journal.recover(folder, RUN, num_rows, UnsyncedFiles())


def contents(journal: Journal) -> dict[int, Result]:
    found = {int(row): journal.read(int(row)) for row in journal.rows()}
    assert len(journal) == len(found)
    journal.close()
    return found


def last_of_each(appended: list[Result]) -> dict[int, Result]:
    return {result.index: result for result in appended}


@contextmanager
def new_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@dataclass
class Frame:
    path: Path
    start: int
    end: int
    result: Result


def write_journal(folder: Path, appended: list[Result], segment_bytes: int) -> list[Frame]:
    """One group a result, and where its frame stands."""
    writer = open_writer(folder, segment_bytes=segment_bytes)
    frames = []
    for result in appended:
        writer.append(result)
        writer.sync()
        _, path = list_segments(folder)[-1]
        size = path.stat().st_size
        frames.append(Frame(path, size - len(encode_frame(result, 0)), size, result))
    writer.close()
    return frames


class TestAnySequence:
    @given(st.lists(st.none() | results, max_size=30), st.integers(1, 400))
    @unhurried
    def test_of_appends_and_syncs(self, steps, segment_bytes):
        """None is a sync. Without a close, as after SIGKILL, what was not synced may be missing."""
        with new_folder() as folder:
            writer = open_writer(folder, segment_bytes=segment_bytes)
            appended: list[Result] = []
            for step in steps:
                if step is None:
                    writer.sync()
                    assert writer.num_acknowledged == len(appended)
                    assert contents(Journal(folder, RUN, NUM_ROWS)) == last_of_each(appended)
                else:
                    writer.append(step)
                    appended.append(step)
            acknowledged = appended[: writer.num_acknowledged]
            assert contents(recover(folder)) == last_of_each(acknowledged)
            writer.close()
            assert contents(recover(folder)) == last_of_each(appended)

    @given(st.lists(results, min_size=1, max_size=8), st.data())
    @unhurried
    def test_cut_at_any_byte(self, appended, data):
        with new_folder() as folder:
            frames = write_journal(folder, appended, data.draw(st.sampled_from([1, 300, 2**20])))
            _, path = list_segments(folder)[-1]
            cut = data.draw(st.integers(0, path.stat().st_size))
            path.write_bytes(path.read_bytes()[:cut])
            left = [frame.result for frame in frames if frame.path != path or frame.end <= cut]
            journal = recover(folder)
            assert journal.damage == []
            assert contents(journal) == last_of_each(left)
            more = data.draw(st.lists(results, max_size=3))
            write_journal(folder, more, 2**20)
            journal = recover(folder)
            assert journal.damage == []
            assert contents(journal) == last_of_each(left + more)

    @given(
        st.lists(results, min_size=1, max_size=8),
        st.sampled_from([1, 300, 2**20]),
        st.integers(0, 10_000),
        st.binary(min_size=1, max_size=40),
    )
    @example([answer(0), answer(1)], 2**20, 0, b"\0" * HEADER_BYTES)
    @example([answer(0), answer(1)], 2**20, 8, b"\0")
    @example([answer(0), answer(1)], 2**20, HEADER_BYTES + FRAME_BYTES, b"\xffrow" * 3)
    @unhurried
    def test_overwritten_anywhere(self, appended, segment_bytes, position, noise):
        """Frames that are not touched are found, the others are not, and damage is named."""
        with new_folder() as folder:
            frames = write_journal(folder, appended, segment_bytes)
            segments = [path for _, path in list_segments(folder)]
            path = segments[position % len(segments)]
            before = path.read_bytes()
            start = position % len(before)
            after = (before[:start] + noise + before[start + len(noise) :])[: len(before)]
            path.write_bytes(after)
            left, behind = [], False
            for frame in frames:
                touched = frame.path == path and (
                    before[frame.start : frame.end] != after[frame.start : frame.end]
                )
                if not touched:
                    left.append(frame.result)
                    behind |= frame.path > path or (frame.path == path and frame.start >= start)
            journal = recover(folder)
            assert contents(journal) == last_of_each(left)
            assert bool(journal.damage) == (before != after and behind)
            more = [answer(3, "after the damage")]
            write_journal(folder, more, 2**20)
            journal = recover(folder)
            assert contents(journal) == last_of_each(left + more)

    @given(results)
    @unhurried
    def test_every_bit_counts(self, result):
        header = segment_header(RUN, 1)
        content = header + encode_frame(result, segment_salt(header))
        whole = scan_segment(content, RUN, 1)
        assert whole is not None and whole.rows == [result.index]
        for position in range(HEADER_BYTES, len(content)):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            found = scan_segment(bytes(flipped), RUN, 1)
            assert found is not None
            assert (found.rows, found.gaps, found.end) == ([], [], HEADER_BYTES)


class TestGroups:
    """When a row is acknowledged."""

    def test_after_256_rows(self, tmp_path):
        writer = open_writer(tmp_path, clock=lambda: 0.0)
        for row in range(600):
            writer.append(answer(row))
            assert writer.num_acknowledged == (row + 1) // 256 * 256
        writer.close()
        assert writer.num_acknowledged == 600

    def test_after_a_second(self, tmp_path):
        now = [10.0]
        writer = open_writer(tmp_path, clock=lambda: now[0])
        writer.append(answer(0))
        now[0] = 10.9
        writer.append(answer(1))
        writer.sync_if_due()
        assert writer.num_acknowledged == 0
        now[0] = 11.0
        writer.sync_if_due()
        assert writer.num_acknowledged == 2
        now[0] = 20.0
        writer.append(answer(2))
        assert writer.num_acknowledged == 2  # its second begins now
        now[0] = 21.0
        writer.append(answer(3))
        assert writer.num_acknowledged == 4
        writer.close()

    def test_after_a_megabyte(self, tmp_path):
        writer = open_writer(tmp_path, clock=lambda: 0.0)
        writer.append(answer(0, "x" * 2**20))
        assert writer.num_acknowledged == 1
        writer.close()

    def test_nothing_is_written_without_rows(self, tmp_path):
        writer = open_writer(tmp_path)
        writer.sync()
        writer.sync_if_due()
        writer.close()
        assert list(tmp_path.iterdir()) == []

    def test_segments_are_bounded(self, tmp_path):
        writer = open_writer(tmp_path, segment_bytes=10_000)
        for row in range(2000):
            writer.append(answer(row))
        writer.close()
        sizes = [path.stat().st_size for _, path in list_segments(tmp_path)]
        group = 256 * len(encode_frame(answer(1999), 0))
        assert len(sizes) > 3 and max(sizes) < 10_000 + group + HEADER_BYTES


class TestFailure:
    def test_a_writer_that_failed_stays_so(self, tmp_path):
        writer = open_writer(tmp_path)
        writer.append(answer(0))
        writer.sync()
        writer.append(answer(1))
        segment_path(tmp_path, 1).unlink()
        with pytest.raises(OutputError, match="deleted while in use") as first:
            writer.sync()
        for call in (writer.sync, lambda: writer.append(answer(2))):
            with pytest.raises(OutputError) as again:
                call()
            assert again.value is first.value
        assert writer.num_acknowledged == 1
        writer.close()
        assert list(tmp_path.iterdir()) == []

    def test_a_segment_that_is_there_already(self, tmp_path):
        """Another process, on a mount whose locks do not reach it."""
        writer = open_writer(tmp_path)
        other = open_writer(tmp_path)
        other.append(answer(0))
        other.close()
        with pytest.raises(OutputError, match="journal-000001 cannot be written: File exists"):
            writer.append(answer(1))
        assert contents(recover(tmp_path)) == {0: answer(0)}

    def test_a_result_that_changes_under_the_reader(self, tmp_path):
        frames = write_journal(tmp_path, [answer(0), answer(1)], 2**20)
        journal = recover(tmp_path)
        path = frames[0].path
        content = path.read_bytes()
        path.write_bytes(content[: frames[0].end - 1] + b"?" + content[frames[0].end :])
        assert journal.read(1) == answer(1)
        with pytest.raises(OutputError, match="row 0, at byte 36, has changed"):
            journal.read(0)
        path.write_bytes(content[: frames[1].start + 5])
        with pytest.raises(OutputError, match="row 1"):
            journal.read(1)
        journal.close()

    def test_a_segment_that_cannot_be_read(self, tmp_path):
        segment_path(tmp_path, 1).mkdir()
        with pytest.raises(OutputError, match="journal-000001 cannot be read: Not a regular file"):
            recover(tmp_path)


class TestReading:
    def test_result_of_a_row(self, tmp_path):
        write_journal(tmp_path, [answer(1)], 2**20)
        journal = recover(tmp_path)
        assert 1 in journal and 0 not in journal
        assert journal.result_of(Row(0, "id-0", 1, "m.jsonl")) is None
        found = journal.result_of(Row(1, "id-1", 2, "m.jsonl", extra={"x": 5}))
        assert found == Result(1, "id-1", "yes", "stop", 600, 576, 2, extra={"x": 5})
        with pytest.raises(OutputError, match='row 1 is "b" in the manifest but "id-1"'):
            journal.result_of(Row(1, "b", 2, "m.jsonl"))
        with pytest.raises(KeyError):
            journal.read(0)
        journal.close()

    def test_long_results(self, tmp_path):
        long = [answer(row, chr(65 + row) * 3000 * row) for row in range(5)]
        write_journal(tmp_path, long, 2**20)
        assert contents(recover(tmp_path)) == last_of_each(long)

    def test_from_many_threads_and_more_segments_than_stay_open(self, tmp_path, monkeypatch):
        monkeypatch.setattr(journal_module, "_MAX_OPEN", 3)
        write_journal(tmp_path, [answer(row) for row in range(NUM_ROWS)], 1)
        journal = recover(tmp_path)
        wrong: list[int] = []

        def read() -> None:
            rows = [*range(NUM_ROWS)] * 50
            wrong.extend(row for row in rows if journal.read(row) != answer(row))

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == [] and len(journal._descriptors) == 3
        journal.close()

    def test_opening_changes_nothing(self, tmp_path):
        """What a second process does that only looks, while the first writes."""
        write_journal(tmp_path, [answer(0), answer(1)], 2**20)
        path = segment_path(tmp_path, 1)
        path.write_bytes(path.read_bytes()[:-3])
        before = path.read_bytes()
        assert contents(Journal(tmp_path, RUN, NUM_ROWS)) == {0: answer(0)}
        assert path.read_bytes() == before
        recover(tmp_path)
        assert path.read_bytes() == before[: HEADER_BYTES + len(encode_frame(answer(0), 0))]

    def test_what_recovery_found_survives_a_power_cut(self, tmp_path):
        """Rows that a killed process wrote but did not sync are in the system's memory alone."""
        folder = tmp_path / "before"
        folder.mkdir()
        files = VolatileFiles(folder, pretended=frozenset({"fsync", "fsync_folder"}))
        writer = JournalWriter(folder, RUN, files=files)
        writer.append(answer(0))
        writer.sync()
        files.pretended = frozenset()
        assert contents(Journal.recover(folder, RUN, NUM_ROWS, files)) == {0: answer(0)}
        files.survive(tmp_path / "after")
        assert contents(recover(tmp_path / "after")) == {0: answer(0)}
        writer.close()

    def test_damage_is_named(self, tmp_path, caplog):
        frames = write_journal(tmp_path, [answer(0), answer(1), answer(2)], 2**20)
        path = frames[1].path
        content = bytearray(path.read_bytes())
        content[frames[1].end - 2] ^= 1
        path.write_bytes(content)
        assert contents(recover(tmp_path)) == {0: answer(0), 2: answer(2)}
        size = frames[1].end - frames[1].start
        assert f"{path}: {size} bytes from {frames[1].start}" in caplog.text
        assert "computed again" in caplog.text


class TestForeign:
    def test_another_runs_segments_do_not_count(self, tmp_path):
        write_journal(tmp_path, [answer(0)], 2**20)
        other = open_writer(tmp_path, OTHER_RUN)
        other.append(answer(1))
        other.close()
        write_journal(tmp_path, [answer(2)], 2**20)
        journal = recover(tmp_path)
        assert journal.damage == []
        assert contents(journal) == {0: answer(0), 2: answer(2)}
        assert contents(Journal(tmp_path, OTHER_RUN, NUM_ROWS)) == {1: answer(1)}

    def test_frames_of_another_place_do_not_count(self, tmp_path):
        """Blocks of a deleted file can come to stand in a torn tail."""
        write_journal(tmp_path, [answer(0)], 1)
        write_journal(tmp_path, [answer(1)], 1)
        first, second = segment_path(tmp_path, 1), segment_path(tmp_path, 2)
        second.write_bytes(second.read_bytes() + first.read_bytes()[HEADER_BYTES:])
        first.unlink()
        assert contents(recover(tmp_path)) == {1: answer(1)}

    def test_another_version(self, tmp_path):
        write_journal(tmp_path, [answer(0)], 2**20)
        path = segment_path(tmp_path, 1)
        content = path.read_bytes()
        header = content[:8] + struct.pack("<I", 2) + content[12 : HEADER_BYTES - 4]
        header += struct.pack("<I", zlib.crc32(header))
        path.write_bytes(header + content[HEADER_BYTES:])
        with pytest.raises(OutputError, match="journal format 2, expected 1") as caught:
            recover(tmp_path)
        assert "--overwrite" in str(caught.value)

    def test_an_error_code_of_another_version(self, tmp_path):
        class Later(str):
            __slots__ = ()

        later: Any = Later("bored")
        write_journal(tmp_path, [Result(0, "0", error_code=later)], 2**20)
        journal = recover(tmp_path)
        with pytest.raises(OutputError, match="'bored' is not a valid ErrorCode"):
            journal.read(0)
        journal.close()

    def test_a_row_that_the_manifest_does_not_have(self, tmp_path):
        write_journal(tmp_path, [answer(3)], 2**20)
        with pytest.raises(OutputError, match="holds row 3, but the manifest has 3 rows"):
            recover(tmp_path, num_rows=3)

    def test_other_files_are_left_alone(self, tmp_path):
        for name in ("journal-1", "journal-000001.bak", "keys", "journal-00000a"):
            (tmp_path / name).write_bytes(b"mine")
        write_journal(tmp_path, [answer(0)], 2**20)
        assert contents(recover(tmp_path)) == {0: answer(0)}
        assert (tmp_path / "journal-000001.bak").read_bytes() == b"mine"
