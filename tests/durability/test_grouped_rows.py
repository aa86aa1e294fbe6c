"""Runs whose rows leave by image and wait on the disk: they end, and are resumed, as any other."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from fast_command import Command
from resumable_runs import WITH_ERRORS, ResumableRun, read_rows, write_questions

NUM_IMAGES, NUM_QUESTIONS = 60, 5
SPILLING = {"spilling": True, "step_seconds": 0.002}


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    return write_questions(folder / "manifest.jsonl", NUM_IMAGES, NUM_QUESTIONS)


@pytest.fixture(scope="module")
def answers(questions, commands, model, tmp_path_factory):
    """The rows of a run that nothing disturbed, in which nothing waited on the disk."""
    run = ResumableRun(commands, tmp_path_factory.mktemp("answers"), questions, model)
    assert run.attempt() == WITH_ERRORS
    return read_rows(run.output)


def files_without_names(command: Command, folder: Path) -> int:
    """How many the process has open that were to lie in ``folder``."""
    links = []
    for descriptor in Path(f"/proc/{command.pid}/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except FileNotFoundError:  # closed since
            continue
    return sum(link.startswith(str(folder)) and link.endswith("(deleted)") for link in links)


@pytest.mark.parametrize("shard_rows", [None, 64])
def test_killed_at_random_moments(new_run, questions, answers, shard_rows):
    rng = random.Random(shard_rows)
    run = new_run(questions, shard_rows=shard_rows, write_behind=True, **SPILLING)
    work = run.folder / f"{run.output.name}.vlmbatch"
    command = run.start()
    command.wait_until(lambda: len(command.acknowledged) >= 64)
    assert files_without_names(command, work) > 0
    # Rows of an image follow each other.
    assert len({index % NUM_IMAGES for index in command.computed[:50]}) < 30
    command.send_signal(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    run.acknowledged.update(command.acknowledged)
    while len(run.killed) < 5:
        status = run.attempt(kill_at=rng.randrange(50), kill_after=rng.uniform(0, 0.005))
        if status != -signal.SIGKILL:
            break
    assert len(run.killed) > 2
    run.finish(answers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_rows_are_read_ahead(new_run, questions, answers, number):
    rng = random.Random(number)
    run = new_run(questions, **SPILLING)
    for _ in range(3):
        command = run.start()
        command.wait_until(lambda command=command: command.has("loading"))
        command.ended(rng.uniform(0, 0.05))
        command.send_signal(number)
        assert command.wait() == 128 + number
        assert "Traceback" not in command.stderr
        run.acknowledged.update(command.acknowledged)
    run.finish(answers)


def test_a_disk_that_is_full_before_all_rows_wait_on_it(new_run, questions, answers, small_disk):
    run = new_run(questions, folder=small_disk, **SPILLING)
    ballast = small_disk / "ballast"
    failures = 0
    for free in (4, 8, 12, 16, 32, 64, 128):
        size = shutil.disk_usage(small_disk).free - free * os.sysconf("SC_PAGE_SIZE")
        ballast.write_bytes(b"x" * size)
        command = run.start()
        status = command.wait()
        ballast.unlink()
        assert not run.acknowledged.intersection(command.computed)
        run.acknowledged.update(command.acknowledged)
        if status == WITH_ERRORS:
            break
        assert status == 74 and os.strerror(errno.ENOSPC) in command.stderr, command.stderr
        assert "Traceback" not in command.stderr
        failures += 1
    assert failures > 1
    run.finish(answers)


def test_the_folder_goes_that_rows_wait_in(new_run, questions, answers):
    run = new_run(questions, **SPILLING)
    command = run.start()
    command.wait_until(lambda: len(command.acknowledged) >= 64)
    shutil.rmtree(run.folder)
    assert command.wait() == 74, command.stderr
    assert "Check that its folder exists" in command.stderr
    run.folder.mkdir()
    run.finish(answers)


def test_incremental_and_retry_failed(new_run, questions, answers, tmp_path):
    """Rows that were answered before pass among those of their group."""
    manifest = shutil.copytree(questions.parent, tmp_path / "copy") / questions.name
    run = new_run(manifest, **SPILLING)
    assert run.attempt(crash_at="journal.acknowledged:4") == -signal.SIGKILL
    kept = {f"row-{index // NUM_IMAGES}-{index % NUM_IMAGES}" for index in run.acknowledged}
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    reordered = [*rows[100:], *rows[:50], *rows[50:100:2]]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in reordered))
    assert run.start().wait() == 2
    command = run.start("--incremental")
    assert command.wait() == WITH_ERRORS, command.stderr
    failed = {row["id"] for row in answers if row["status"] == "error"}
    assert not kept - failed & {reordered[index]["id"] for index in command.computed}
    by_id = {row["id"]: row for row in answers}
    wanted = [
        {**by_id[row["id"]], "row_index": index, "error_message": None}
        for index, row in enumerate(reordered)
    ]
    assert [{**row, "error_message": None} for row in read_rows(run.output)] == wanted
    again = run.start("--retry-failed")
    assert again.wait() == WITH_ERRORS
    assert {reordered[index]["id"] for index in again.computed} <= failed


def test_the_error_budget_sees_rows_that_wait_for_others(new_run, questions, tmp_path):
    """A question that fails for every image does so long before its rows can be written."""
    manifest = shutil.copytree(questions.parent, tmp_path / "copy") / questions.name
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows[-NUM_IMAGES:]:
        row["prompt"] = 5
    more = [{**row, "id": f"more {number} {row['id']}"} for number in range(4) for row in rows]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in sorted(more, key=question)))
    run = new_run(manifest, step_seconds=0.001)
    command = run.start("--max-error-rate", "12%")
    assert command.wait() == 1
    assert "more than the 12.0% that --max-error-rate allows" in command.stderr
    assert len(command.computed) < len(more) // 2


def question(row: dict[str, str]) -> int:
    return int(row["id"].rpartition("-")[0].rpartition("-")[2])
