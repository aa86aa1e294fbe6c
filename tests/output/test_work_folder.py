"""A run that dies anywhere, or meets a failing disk, is finished by running it again."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from failing_files import FaultyFiles, PowerCut, UnsyncedFiles, VolatileFiles
from resumable_job import FINGERPRINT, NUM_ROWS, answer, check_finished, run

from vlmbatch.durable.crash_points import CRASH_POINTS
from vlmbatch.durable.durable_file import DurableFile
from vlmbatch.durable.journal import Journal
from vlmbatch.durable.journal_writer import JournalWriter, list_segments
from vlmbatch.durable.run_paths import work_folder_path
from vlmbatch.durable.run_record import RunRecord, read_record
from vlmbatch.errors import OutputError, OutputLockedError
from vlmbatch.output import parquet_writer as writer_module
from vlmbatch.output.work_folder import (
    FINGERPRINT_KEY,
    RUN_ID_KEY,
    OutputCommit,
    WorkFolder,
    read_commit,
)
from vlmbatch.types import Result

JOB = Path(__file__).parent.parent / "support" / "resumable_job.py"
MANY = 10_000  # more calls than a run makes


def interrupted_run(
    output: Path, attempt: int, acknowledged: dict[int, Result], files: VolatileFiles, **options
) -> bool:
    """Whether the run came to its end before the power was cut."""
    try:
        run(output, attempt, acknowledged, files, **options)
    except PowerCut:
        return False
    return True


OWN_DISK = "disk"  # a folder of this name is a disk of its own


@pytest.fixture
def own_disks(monkeypatch):
    """As the system tells it; the real calls are made on one disk."""
    stat = os.stat

    def told(path, **how):
        status = stat(path, **how)
        if how or not str(path).endswith(f"/{OWN_DISK}"):
            return status
        reduced: Any = status.__reduce__()
        kind, (values, others) = reduced
        return kind((*values[:2], status.st_dev + 1, *values[3:]), others)

    monkeypatch.setattr(os, "stat", told)


def make_place(output: Path) -> None:
    output.parent.mkdir(parents=True)
    if output.name == OWN_DISK:
        output.mkdir()


def power_cuts(
    folder: Path,
    pretended: frozenset[str] = frozenset(),
    seeds: Callable[[int], list[int | None]] = lambda at: [None],
    name: str = "out.parquet",
    **options,
) -> int:
    """Cut the power at each call in turn, run again, and check; the number of cuts.

    ``seeds`` of a call: of what may survive; None: nothing that is not synced.
    """
    for at in range(MANY):
        for seed in seeds(at):
            root = folder / f"{at}-{seed}"
            make_place(root / "before" / name)
            files = VolatileFiles(root / "before", at, pretended)
            acknowledged: dict[int, Result] = {}
            finished = interrupted_run(root / "before" / name, 1, acknowledged, files, **options)
            rng = None if seed is None else random.Random(1000 * at + seed)
            files.survive(root / "after", rng)
            output = root / "after" / name
            if finished:
                with WorkFolder(output, UnsyncedFiles()) as work:
                    record = work.current_run()
                assert record is not None, "a complete output was lost"
                assert record.state == "complete"
            run(output, 2, {}, UnsyncedFiles())
            check_finished(output, acknowledged, attempts=2)
        if finished:
            return at
    raise AssertionError("the run never ends")


class TestPowerCut:
    def test_at_every_call(self, tmp_path):
        assert power_cuts(tmp_path, seeds=lambda at: [None, 0]) > 40

    def test_at_every_call_with_the_work_folder_inside(self, tmp_path, own_disks):
        by_turns = power_cuts(tmp_path, seeds=lambda at: [at if at % 2 else None], name=OWN_DISK)
        assert by_turns > 50

    @pytest.mark.soak
    @pytest.mark.parametrize("name", ["out.parquet", OWN_DISK])
    def test_at_every_call_more_often(self, tmp_path, own_disks, name):
        assert power_cuts(tmp_path, seeds=lambda at: [None, *range(10)], name=name) > 40

    @pytest.mark.parametrize("chains", [12, pytest.param(200, marks=pytest.mark.soak)])
    @pytest.mark.parametrize("name", ["out.parquet", OWN_DISK])
    def test_again_and_again(self, tmp_path, own_disks, name, chains):
        rng = random.Random(7)
        for chain in range(chains):
            acknowledged: dict[int, Result] = {}
            root = tmp_path / f"{chain}-0"
            make_place(root / name)
            for attempt in range(1, 6):
                files = VolatileFiles(root, rng.randrange(60))
                interrupted_run(root / name, attempt, acknowledged, files)
                root = tmp_path / f"{chain}-{attempt}"
                files.survive(root, rng)
            run(root / name, 6, {}, UnsyncedFiles())
            check_finished(root / name, acknowledged, attempts=6)

    def test_while_a_new_run_takes_an_old_ones_place(self, tmp_path):
        """Either the old run is there with all its rows, or the new one with all of its own."""
        for at in range(MANY):
            before, after = tmp_path / f"{at}", tmp_path / f"{at}-after"
            before.mkdir()
            old, new = new_record(1), new_record(2)
            with WorkFolder(before / "out.parquet", UnsyncedFiles()) as work:
                work.begin(old)
                write_rows(work, old, [0, 1])
                write_rows(work, new, [4])
            files = VolatileFiles(before, at)
            try:
                with WorkFolder(before / "out.parquet", files) as work:
                    work.begin(new)
                finished = True
            except PowerCut:
                finished = False
            files.survive(after, random.Random(at))
            with WorkFolder(after / "out.parquet", UnsyncedFiles()) as work:
                record = work.current_run()
                assert record == new or (record == old and not finished)
                assert work.journal(record).rows().tolist() == ([0, 1] if record == old else [4])
            if finished:
                return

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            ("fsync", OutputError, "run.json is damaged"),
            ("fsync_folder", AssertionError, "an acknowledged row was lost"),
        ],
    )
    def test_check_fails_without(self, tmp_path, call, error, message):
        """The check above has to see a program that forgets one of its calls."""
        with pytest.raises(error, match=message):
            power_cuts(tmp_path, pretended=frozenset({call}))

    def test_check_fails_when_the_output_gets_its_name_unsynced(self, tmp_path, monkeypatch):
        class Unsynced(DurableFile):
            def sync(self) -> None:
                pass

        monkeypatch.setattr(writer_module, "DurableFile", Unsynced)
        with pytest.raises(AssertionError, match="was lost"):
            power_cuts(tmp_path)

    def test_check_fails_when_rows_are_acknowledged_before_they_are_synced(self, tmp_path):
        class Hasty(JournalWriter):
            def sync(self) -> None:
                """Leaves the group to the next one's fsync."""
                if self._segment is not None:
                    self._segment.write(self._group)
                    self._group.clear()
                    self._group_rows = 0

        with pytest.raises(AssertionError, match="an acknowledged row was lost"):
            power_cuts(tmp_path, journal_writer=Hasty)

    def test_check_fails_when_a_segment_has_no_durable_name(self, tmp_path):
        class Nameless(JournalWriter):
            def _open_segment(self) -> None:
                super()._open_segment()
                self._named = True

        with pytest.raises(AssertionError, match="an acknowledged row was lost"):
            power_cuts(tmp_path, journal_writer=Nameless)

    def test_check_fails_when_the_journal_goes_before_the_output_is_there(
        self, tmp_path, monkeypatch
    ):
        begin = WorkFolder.begin

        def hasty(self: WorkFolder, record: RunRecord) -> None:
            begin(self, record)
            monkeypatch.setattr(WorkFolder, "journal", early_end)

        def early_end(self: WorkFolder, record: RunRecord) -> Journal:
            self.complete(record)
            return journal(self, record)

        journal = WorkFolder.journal
        monkeypatch.setattr(WorkFolder, "begin", hasty)
        with pytest.raises((AssertionError, FileNotFoundError)):
            power_cuts(tmp_path)


class TestKill:
    def test_at_every_crash_point(self, tmp_path):
        """A first process leaves a journal, a second is killed at the point, a third goes on."""

        def killed(attempt: int, outputs: dict[str, Path]) -> dict[str, dict[int, Result]]:
            """The acknowledged rows of each crash point."""
            arguments = [f"{point}={output}" for point, output in outputs.items()]
            command = [sys.executable, str(JOB), str(attempt), *arguments]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60)
            lines = [line.split() for line in done.stdout.splitlines()]
            ends = [[point, "status", str(-signal.SIGKILL)] for point in outputs]
            assert [line for line in lines if "status" in line] == ends
            rows: dict[str, dict[int, Result]] = {point: {} for point in outputs}
            for point, row in (line for line in lines if "status" not in line):
                rows[point][int(row)] = answer(int(row), attempt)
            return rows

        left = tmp_path / "left"
        left.mkdir()
        [first] = killed(1, {"journal.acknowledged:3": left / "out.parquet"}).values()
        assert len(first) == 4
        outputs = {point: tmp_path / point / "out.parquet" for point in CRASH_POINTS}
        for output in outputs.values():
            shutil.copytree(left, output.parent)
        for point, rows in killed(2, outputs).items():
            run(outputs[point], 3, {})
            check_finished(outputs[point], first | rows, attempts=3)

    def test_a_point_that_does_not_exist_is_refused(self):
        done = subprocess.run(
            [sys.executable, str(JOB)],
            env=os.environ | {"VLMBATCH_CRASH_AT": "journal.wirtten"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1 and "journal.written" in done.stderr


class TestFaults:
    @pytest.mark.parametrize("name", ["out.parquet", OWN_DISK])
    def test_at_every_call(self, tmp_path, own_disks, name):
        """Of a first run, and then of the one that resumes it; of two errors by turns."""
        told = (errno.ENOSPC, "Free space"), (errno.EIO, "Check the disk")
        for at in range(MANY):
            number, advice = told[at % 2]
            output = tmp_path / str(at) / name
            make_place(output)
            acknowledged: dict[int, Result] = {}
            first, second = FaultyFiles(at, number), FaultyFiles(at // 2, number)
            for attempt, files in enumerate((first, second), start=1):
                try:
                    run(output, attempt, acknowledged, files)
                except OutputError as error:
                    message = str(error)
                    assert str(output.parent) in message
                    assert os.strerror(number) in message
                    assert advice in message and "run again" in message
                    assert isinstance(error.__cause__, OSError)
            run(output, 3, {}, UnsyncedFiles())
            check_finished(output, acknowledged, attempts=3)
            if len(first.calls) <= at:
                break
        assert at > 40

    def test_short_writes(self, tmp_path):
        for at in range(MANY):
            output = tmp_path / str(at) / "out.parquet"
            output.parent.mkdir()
            files = FaultyFiles(at)
            run(output, 1, {}, files)
            check_finished(output, {}, attempts=1)
            if len(files.calls) <= at:
                break
        assert files.calls.count("write") > 10

    def test_folder_removed_under_it(self, tmp_path):
        output = tmp_path / "out.parquet"

        class Removing(dict[int, Result]):
            def __setitem__(self, row: int, result: Result) -> None:
                shutil.rmtree(work_folder_path(output), ignore_errors=True)

        with pytest.raises(OutputError, match="Check that its folder exists"):
            run(output, 1, Removing())
        assert not output.exists()

    def test_no_folder_for_the_output(self, tmp_path):
        with pytest.raises(OutputError, match="No such file or directory"):
            WorkFolder(tmp_path / "none" / "out.parquet")

    def test_a_file_in_its_place(self, tmp_path):
        work_folder_path(tmp_path / "out.parquet").touch()
        with pytest.raises(OutputError, match="File exists"):
            WorkFolder(tmp_path / "out.parquet")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def new_record(seed: int = 1) -> RunRecord:
    return RunRecord.new({"sampling": {"seed": seed}}, FINGERPRINT, NUM_ROWS)


class TestRuns:
    def test_locked_while_open(self, output):
        with WorkFolder(output), pytest.raises(OutputLockedError, match=str(output)):
            WorkFolder(output)
        WorkFolder(output).close()

    def test_a_new_run_drops_what_the_old_one_left(self, output):
        old, new = new_record(1), new_record(2)
        with WorkFolder(output) as work:
            work.begin(old)
            work.keys_path(old).write_bytes(b"k" * 16)
            write_rows(work, old, [0, 1])
            work.begin(new)
            assert work.current_run() == new
            assert len(work.journal(new)) == 0
            assert not work.keys_path(old).exists() and list_segments(work.path) == []

    def test_rows_written_ahead_of_a_run_are_kept_when_it_begins(self, output):
        old, new = new_record(1), new_record(2)
        with WorkFolder(output) as work:
            work.begin(old)
            write_rows(work, old, [0, 1])
            work.keys_path(new).write_bytes(b"k" * 16)
            write_rows(work, new, [4])
            assert work.journal(old).rows().tolist() == [0, 1]
            work.begin(new)
            assert work.journal(new).rows().tolist() == [4]
            assert work.keys_path(new).exists()
            assert len(list_segments(work.path)) == 1

    def test_an_older_output_with_equal_settings_does_not_end_a_run(self, output):
        run(output, 1, {})
        with WorkFolder(output) as work:
            first = work.current_run()
            second = new_record()
            work.begin(second)
            assert second.fingerprint == first.fingerprint
            assert work.current_run().state == "running"
        run(output, 2, {})
        assert pq.read_table(output)["text"][0].as_py() == answer(0, 2).text

    def test_a_complete_run_ends_with_its_output(self, output):
        run(output, 1, {})
        content = output.read_bytes()
        with WorkFolder(output) as work:
            assert work.current_run().state == "complete"
            output.unlink()
            assert work.current_run() is None
            pq.write_table(pa.table({"a": [1]}), output)
            assert work.current_run() is None
            output.write_bytes(content)
            assert work.current_run().state == "complete"

    def test_changes_are_named(self):
        record = RunRecord.new({"a": {"b": (1, 2), "c": 3}, "d": None, "e": 1}, "f", 1)
        assert record.changes({"a": {"b": [1, 2], "c": 3}, "d": None, "e": 1}) == []
        changed = {"a": {"b": [1], "c": 3, "x": "y"}, "d": 0}
        assert record.changes(changed) == [
            "a.b: [1, 2] -> [1]",
            'a.x: none -> "y"',
            "d: none -> 0",
            "e: 1 -> none",
        ]

    def test_record_survives_reading(self, output):
        record = RunRecord.new({"stop": ("é\udce9",), "path": Path("x")}, FINGERPRINT, 3)
        with WorkFolder(output) as work:
            work.begin(record)
            assert read_record(work.path / "run.json") == record

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "damaged"),
            (b"[]", "damaged"),
            (b'{"format": 1}', "damaged"),
            (b'{"format": 2, "version": "9.0"}', r"another version of vlmbatch \(9.0\)"),
        ],
    )
    def test_record_that_cannot_be_used(self, output, content, message):
        with WorkFolder(output) as work:
            (work.path / "run.json").write_bytes(content)
            with pytest.raises(OutputError, match=message) as caught:
                work.current_run()
            assert "--overwrite" in str(caught.value)
            work.begin(new_record())
            assert work.current_run() is not None

    def test_every_change_of_a_damaged_record_is_noticed_or_harmless(self, output):
        record = new_record()
        with WorkFolder(output) as work:
            work.begin(record)
            path = work.path / "run.json"
            content = path.read_bytes()
            for cut in range(len(content)):
                path.write_bytes(content[:cut])
                with pytest.raises(OutputError):
                    read_record(path)


class TestCommit:
    def write(self, path: Path, metadata: dict[str, str]) -> None:
        table = pa.table({"a": [1]}).replace_schema_metadata(metadata)
        pq.write_table(table, path)

    def test_of_a_run(self, output):
        self.write(output, {RUN_ID_KEY: "a", FINGERPRINT_KEY: "b"})
        assert read_commit(output) == OutputCommit(fingerprint="b", run_id="a")

    def test_of_something_else(self, output):
        assert read_commit(output) is None
        assert read_commit(output.parent) is None
        self.write(output, {})
        assert read_commit(output) == OutputCommit(None, None)
        content = output.read_bytes()
        for damaged in (b"", b"PAR1", b"text" * 100, content[:-1], content[:-20] + b"\0" * 12):
            output.write_bytes(damaged + content[-8:] if len(damaged) > 500 else damaged)
            assert read_commit(output) is None


def write_rows(work: WorkFolder, record: RunRecord, rows: list[int]) -> None:
    with work.journal_writer(record) as writer:
        for row in rows:
            writer.append(answer(row, 1))
