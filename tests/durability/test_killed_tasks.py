"""Tasks that answer parts, and what joins these, are killed anywhere and run again."""

from __future__ import annotations

import itertools
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fast_command import FastCommands
from resumable_runs import WITH_ERRORS, ResumableRun, read_rows

from vlmbatch.config import Part
from vlmbatch.durable.crash_points import CRASH_POINTS
from vlmbatch.durable.run_paths import temporary_path, work_folder_path

COUNT = 3
# With the visit: a merge writes its record when it begins and when it has ended.
OF_A_MERGE = [(point, 1) for point in CRASH_POINTS if point.startswith("output")] + [
    (point, visit) for visit in (1, 2) for point in CRASH_POINTS if point.startswith("run_record")
]


class PartRun(ResumableRun):
    """One task, whose part lies in ``folder/out`` with those of others."""

    def __init__(
        self,
        commands: FastCommands,
        folder: Path,
        manifest: Path,
        model: Path,
        number: int,
        **around: Any,
    ) -> None:
        super().__init__(commands, folder, manifest, model, **around)
        part = Part(number, COUNT)
        self.number = number
        self.output = folder / "out" / part.file_name
        self.arguments[self.arguments.index(folder / "out.parquet")] = folder / "out"
        self.arguments += ["--shard", part]

    def check_finished(self, expected: Sequence[dict[str, Any]]) -> None:
        size = len(expected) // COUNT
        assert read_rows(self.output) == expected[self.number * size : (self.number + 1) * size]
        kept = {path.name.partition("-")[0] for path in work_folder_path(self.output).iterdir()}
        assert kept == {"lock", "run.json", "keys"}
        assert not temporary_path(self.output).exists()


@pytest.fixture
def tasks(
    commands: FastCommands, tmp_path: Path, manifest: Path, model: Path
) -> Callable[..., list[PartRun]]:
    """The tasks of a run in a folder of their own."""
    numbers = itertools.count()

    def new(**around: Any) -> list[PartRun]:
        folder = tmp_path / f"{next(numbers)}"
        folder.mkdir()
        around = {"group_rows": 16, "row_group_rows": 64, **around}
        return [
            PartRun(commands, folder, manifest, model, number, **around) for number in range(COUNT)
        ]

    return new


@pytest.mark.parametrize("write_behind", [False, True])
def test_tasks_that_are_killed_are_finished_by_others(
    tasks: Callable[..., list[PartRun]], expected: list[dict[str, Any]], write_behind: bool
) -> None:
    """In any order; a task that has ended has nothing left to do."""
    rng = random.Random(write_behind)
    runs = tasks(write_behind=write_behind, step_seconds=0.01, max_num_seqs=8)
    landed = 0
    for run in rng.sample(runs * 2, 2 * COUNT):
        landed += run.attempt(kill_at=rng.randrange(60)) == -signal.SIGKILL
    assert landed > COUNT
    for run in runs:
        run.finish(expected)
    assert read_rows(runs[0].output.parent) == expected


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_a_task_at_every_crash_point(
    tasks: Callable[..., list[PartRun]], expected: list[dict[str, Any]], point: str
) -> None:
    run = tasks(write_behind=True)[1]
    if not point.startswith("run_record"):
        assert run.attempt(crash_at="journal.acknowledged:2") == -signal.SIGKILL
    run.attempt(crash_at=f"{point}:1")
    assert run.killed
    run.finish(expected)


def test_a_merge_at_every_crash_point(
    commands: FastCommands, tasks: Callable[..., list[PartRun]], expected: list[dict[str, Any]]
) -> None:
    """The file is there whole, or not at all; the parts are as they were."""
    runs = tasks()
    for run in runs:
        run.finish(expected)
    parts = runs[0].output.parent
    before = {path: path.read_bytes() for path in parts.glob("*.parquet")}
    for number, (point, visit) in enumerate(OF_A_MERGE):
        write_behind = number % 2 == 0
        output = parts.parent / f"{point}-{visit}.parquet"
        arguments = ("merge", parts, "-o", output)
        how = {"row_group_rows": 64, "write_behind": write_behind}
        killed = commands.run(*arguments, crash_at=f"{point}:{visit}", **how)
        assert killed.wait() == -signal.SIGKILL
        assert not output.exists() or read_rows(output) == expected
        assert commands.run(*arguments, **how).wait() == WITH_ERRORS
        assert read_rows(output) == expected
        work = {path.name.partition("-")[0] for path in work_folder_path(output).iterdir()}
        assert work == {"lock", "run.json", "keys"}
        assert not [path for path in output.parent.iterdir() if path.name.startswith(".")]
    assert before == {path: path.read_bytes() for path in parts.glob("*.parquet")}


def test_two_tasks_with_one_part(
    commands: FastCommands, tasks: Callable[..., list[PartRun]], expected: list[dict[str, Any]]
) -> None:
    """The second is told of the first, others are not kept waiting, and nothing is merged yet."""
    first, second, third = tasks(step_seconds=0.02)
    command = first.start()
    command.wait_until(lambda: len(command.computed) > 0)
    command.send_signal(signal.SIGSTOP)  # it holds its lock for as long as all of this takes
    again = first.start()
    assert again.wait() == 75 and f"process {command.pid} on " in again.stderr
    parts = first.output.parent
    merging = commands.run("merge", parts, "-o", parts.parent / "merged.parquet")
    assert merging.wait() == 75 and "of 3 parts 0 is being written" in merging.stderr
    status = commands.run("status", parts)
    assert status.wait() == 75 and "parts     3: 1 being written, 2 missing" in status.stdout
    second.finish(expected)
    command.send_signal(signal.SIGCONT)
    assert command.wait() == WITH_ERRORS
    first.check_finished(expected)
    third.finish(expected)
    assert read_rows(parts) == expected


def test_a_part_that_is_being_answered_again_is_not_merged(
    commands: FastCommands, tasks: Callable[..., list[PartRun]], expected: list[dict[str, Any]]
) -> None:
    runs = tasks()
    for run in runs:
        run.finish(expected)
    assert runs[1].attempt("--retry-failed", crash_at="journal.segment_created") == -signal.SIGKILL
    assert runs[1].attempt("--retry-failed", crash_at="output.synced") == -signal.SIGKILL
    parts = runs[0].output.parent
    arguments = ("merge", parts, "-o", parts.parent / "merged.parquet")
    merging = commands.run(*arguments)
    assert merging.wait() == 1
    assert "1 of 3 parts missing or not finished: 1. Run" in merging.stderr
    assert runs[1].attempt() == WITH_ERRORS
    assert commands.run(*arguments).wait() == WITH_ERRORS
    assert read_rows(parts.parent / "merged.parquet") == expected
