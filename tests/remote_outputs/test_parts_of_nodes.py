"""Parts that nodes put into a folder of a store: what is there, and which of two is kept."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_process import call

from vlmbatch.config import (
    JobConfig,
    ManifestConfig,
    Part,
    PartDestination,
    RunPolicy,
    SessionConfig,
    StdoutDestination,
)
from vlmbatch.durable.run_record import RunRecord
from vlmbatch.errors import ErrorCode, UnfinishedError, UsageError
from vlmbatch.jobs.remote_run import PutConflictError
from vlmbatch.manifest.division import rows_of_part
from vlmbatch.manifest.schema import RESULT_SCHEMA
from vlmbatch.output.other_parts import MAX_OTHERS
from vlmbatch.output.parquet_writer import ParquetResultWriter
from vlmbatch.output.parts import PartInfo
from vlmbatch.output.remote.run_mark import running_marks
from vlmbatch.output.work_folder import FINGERPRINT_KEY, RUN_ID_KEY, WorkFolder
from vlmbatch.ray.parts_folder import PartTask, Probe
from vlmbatch.ray.stored_parts import StoredParts, parts_to_keep_from
from vlmbatch.remote.filesystem import RemotePath, open_filesystem
from vlmbatch.stats import RunStats
from vlmbatch.types import Result

NUM_ROWS, COUNT = 9, 3
CONFIG = JobConfig(SessionConfig("model"), ManifestConfig("m.jsonl"), StdoutDestination())


def task_of(number: int, fingerprint: str = "f") -> PartTask:
    part = Part(number, COUNT)
    return PartTask(part, rows_of_part(part, NUM_ROWS, None), NUM_ROWS, fingerprint)


class Node:
    """A machine with a work folder of its own, which answers at once and without a model.

    ``meanwhile`` is called when the answers are there and nothing is put. ``beside``: the parts
    that lay beside the last one.
    """

    def __init__(self, url: str, work_dir: Path) -> None:
        self.folder = StoredParts(url, work_dir)
        self.work_dir = work_dir
        self.computed = 0
        self.beside: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def write(self, number: int, fingerprint: str = "f", **policy: bool) -> tuple[bool, RunStats]:
        """Whether another run's part was taken, and the figures."""
        task, stats = task_of(number, fingerprint), RunStats()

        def answer(config: JobConfig, stats: RunStats) -> None:
            assert isinstance(config.destination, PartDestination)
            self.beside = sorted(path.name for path in config.destination.folder.glob("*.parquet"))
            self._answer(task, config.destination.path, stats)

        return self.folder.write(
            task, replace(CONFIG, policy=RunPolicy(**policy)), stats, answer
        ), stats

    def _answer(self, task: PartTask, output: Path, stats: RunStats) -> None:
        with WorkFolder(output) as work:
            record = work.current_run()
            if record is not None and record.state == "complete":
                stats.count_earlier(len(task.rows), {}, {})
                return
            settings = {"limit": task.fingerprint}
            record = RunRecord.new(settings, task.fingerprint, len(task.rows))
            work.begin(record)
            info = PartInfo(
                *(task.part.number, task.part.count, task.rows.start, task.manifest_rows),
                *("m.jsonl", record.started, settings),
            )
            metadata = {RUN_ID_KEY: record.id, FINGERPRINT_KEY: task.fingerprint}
            writer = ParquetResultWriter(
                output,
                RESULT_SCHEMA,
                metadata | info.metadata(),
                first_row=task.rows.start,
                temporary=work.temporary_output,
            )
            for index, row in enumerate(task.rows):
                code = ErrorCode.PROMPT_INVALID if row == 4 else None
                text = None if code else "yes"
                result = Result(index, f"{row}", text, "stop", 5, 0, 1, error_code=code)
                writer.write(result)
                stats.count(result, 0)
                self.computed += 1
            self.meanwhile()
            writer.close()
            work.complete(record)

    @property
    def kept(self) -> list[str]:
        """What is left in the work folder."""
        return [path.name for path in self.work_dir.rglob("*") if path.is_file()]


@pytest.fixture
def nodes(
    bucket: str,
    open_once: Callable[[str], RemotePath],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], Node]:
    """Makes nodes, by name."""
    monkeypatch.setattr("vlmbatch.ray.stored_parts.open_filesystem", open_once)
    return lambda name: Node(f"s3://{bucket}/out/", tmp_path / name)


def rows_of(numbers: Sequence[int]) -> dict[Part, range]:
    return {task_of(number).part: task_of(number).rows for number in numbers}


def test_what_is_there(nodes: Callable[[str], Node]) -> None:
    node = nodes("a")
    node.write(0)
    node.write(1)
    folder = pickle.loads(pickle.dumps(node.folder))
    assert folder.named() == [Part(0, COUNT), Part(1, COUNT)]
    found = folder.finished("f", rows_of([0, 1, 2]))
    assert [counts.num_rows for counts in found.values()] == [3, 3]
    assert [dict(counts.errors) for counts in found.values()] == [{}, {"prompt_invalid": 1}]
    assert folder.finished("g", rows_of([0])) == {}
    assert folder.finished("f", {Part(0, COUNT): range(2)}) == {}
    with pytest.raises(UnfinishedError, match="1 of 3 parts missing or not finished: 2"):
        folder.check_whole()
    node.write(2, "g")
    with pytest.raises(UsageError, match=r"part-00002-of-00003.* is of another run than"):
        folder.check_whole()
    with pytest.raises(UsageError, match='limit: "f" -> "g"'):
        folder.refuse_changes(Part(0, COUNT), {"limit": "g"}, incremental=False)


def test_the_same_part_of_two_nodes(nodes: Callable[[str], Node]) -> None:
    """The first that is put stays, and the other node takes it for its own."""
    first, second, third = nodes("a"), nodes("b"), nodes("c")
    second.meanwhile = lambda: first.write(1)
    taken, stats = second.write(1)
    assert taken and (first.computed, second.computed) == (3, 3)
    assert (stats.rows_done, stats.rows_resumed, stats.num_errors) == (3, 3, 1)
    assert first.kept == second.kept == ["put.lock"]
    assert not third.write(1)[0] and third.computed == 0

    third.meanwhile = lambda: second.write(0, "g")
    with pytest.raises(PutConflictError, match="was put by another run"):
        third.write(0)


def test_what_an_earlier_run_has_left_on_a_node(nodes: Callable[[str], Node]) -> None:
    """Where the part was made elsewhere meanwhile, that is gone on with."""

    def die() -> None:
        raise KeyboardInterrupt

    first, second = nodes("a"), nodes("b")
    first.meanwhile = die
    with pytest.raises(KeyboardInterrupt):
        first.write(0)
    assert "run.json" in first.kept
    second.write(0)
    taken, stats = first.write(0)
    assert not taken and stats.rows_resumed == 3 and first.kept == ["put.lock"]


def test_parts_beside_that_rows_may_come_from(nodes: Callable[[str], Node]) -> None:
    node = nodes("a")
    for number in range(COUNT):
        node.write(number)
    node.write(1, incremental=True)
    assert len(node.beside) == COUNT
    node.write(1)
    assert len(node.beside) == 1


def test_a_folder_that_a_node_does_not_see(
    nodes: Callable[[str], Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = nodes("a").folder
    with folder.held(COUNT, RunStats()) as probe:
        folder.see(probe)
    with folder.held(COUNT, RunStats()) as again:
        assert again == probe
    with pytest.raises(UsageError, match="folder-id has another content there"):
        folder.see(Probe(probe.name, "other"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setattr("vlmbatch.ray.stored_parts.open_filesystem", open_filesystem)
    with pytest.raises(UsageError, match=r"access is denied.* A node needs access of its own"):
        nodes("a").folder.see(probe)


def test_runs_that_are_there(
    nodes: Callable[[str], Node],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    node = nodes("a")
    stats = RunStats(rows_total=NUM_ROWS, rows_done=5)
    with node.folder.held(COUNT, stats):
        assert call(["status", str(node.folder)]) == 75
        told = capsys.readouterr().out
        assert "3: 3 missing" in told and "0 of 9 done, 9 left" in told
        assert "with 5 rows done" in told and "next: wait until the run ends" in told
        assert not caplog.records
        with node.folder.held(COUNT, stats):
            assert "another run puts parts there as well (process" in caplog.text
        node.write(0)
        monkeypatch.setattr("vlmbatch.output.remote.run_mark._LOST_SECONDS", -1.0)
        assert call(["status", str(node.folder)]) == 1  # it was not heard of for too long
        assert "with 5 rows done" not in capsys.readouterr().out


def test_a_mark_is_put_again(nodes: Callable[[str], Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmbatch.output.remote.run_mark._PERIOD_SECONDS", 0.01)
    folder, stats = nodes("a").folder, RunStats(rows_total=NUM_ROWS)
    with folder.held(COUNT, stats):
        (mark,) = running_marks(folder._folder)
        stats.rows_done = 7
        while mark.rows_done != 7:
            (mark,) = running_marks(folder._folder)
    assert running_marks(folder._folder) == []


@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 300), st.integers(0, 300), st.data())
def test_rows_that_pass_from_part_to_part(
    count: int, rows_before: int, added: int, removed: int, data: st.DataObject
) -> None:
    """Rows are added, or removed, in one place: all that stay were in parts that are looked at."""
    removed = 0 if added else min(removed, rows_before - 1)
    place = data.draw(st.integers(0, rows_before - removed))
    old_rows = [*range(place), *[None] * added, *range(place + removed, rows_before)]
    number = data.draw(st.integers(0, count - 1))
    part = Part(number, count)
    task = PartTask(part, rows_of_part(part, len(old_rows), None), len(old_rows), "f")
    looked_at = {part.number for part in parts_to_keep_from(task, rows_before)}
    assert number not in looked_at and len(looked_at) <= MAX_OTHERS
    old_parts = [rows_of_part(Part(n, count), rows_before, None) for n in range(count)]
    kept = {old_rows[row] for row in task.rows} - {None}
    for old in kept:
        (holder,) = (n for n, rows in enumerate(old_parts) if old in rows)
        assert holder in looked_at or holder == number
