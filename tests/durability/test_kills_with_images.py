"""Kills of runs that have processes of their own, and of one with a real engine."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
import real_command
from PIL import Image
from resumable_runs import ResumableRun, digests, read_rows
from worker_processes import wait_until, worker_pids

NUM_ROWS = 400


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A manifest of rows with an image each, two of them no images."""
    for number in range(10):
        Image.new("RGB", (8, 8), (25 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    manifest = tmp_path / "manifest.jsonl"
    with manifest.open("w") as file:
        for index in range(NUM_ROWS):
            row = {"prompt": f"<image>What is {index}?", "image": f"{index % 10}.png"}
            file.write(json.dumps(row) + "\n")
    return manifest


def test_image_workers_do_not_hold_the_output(new_run, pictures):
    """They outlive a killed run for a moment, in which the next one can begin."""
    run = new_run(pictures)
    run.arguments += ["--image-workers", 2]
    command = run.start(step_seconds=0.01)
    command.wait_until(lambda: len(command.acknowledged) >= 64)
    workers = worker_pids(command.pid)
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    command.send_signal(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    run.acknowledged.update(command.acknowledged)
    again = run.start()
    again.wait_until(lambda: again.has("loading"))
    assert all(Path("/proc", str(worker)).exists() for worker in workers)
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
    assert again.wait() == 1
    assert not run.acknowledged.intersection(again.computed)
    undisturbed = new_run(pictures)
    assert undisturbed.attempt() == 1
    wanted = read_rows(undisturbed.output)
    assert [row["error_code"] for row in wanted].count("image_unreadable") == NUM_ROWS // 10
    run.check_finished(wanted)
    wait_until(lambda: not any(Path("/proc", str(worker)).exists() for worker in workers))


def test_with_a_real_engine(tmp_path, pictures, commands):
    """Nothing in the place of anything, on a random checkpoint."""
    from checkpoints import make_checkpoint

    make_checkpoint("llama", "clip", tmp_path / "model")

    def start(output, crash_at=""):
        arguments = ("run", pictures, "-o", output, "-m", tmp_path / "model", "--max-tokens", 4)
        return real_command.start(*arguments, crash_at=crash_at)

    folders = [tmp_path / "undisturbed", tmp_path / "killed"]
    outputs = [folder / "out.parquet" for folder in folders]
    for folder in folders:
        folder.mkdir()
    undisturbed, killed = start(outputs[0]), start(outputs[1], "journal.acknowledged")
    assert undisturbed.wait(120) == 1, undisturbed.stderr
    assert killed.wait(120) == -signal.SIGKILL
    again = start(outputs[1])
    assert again.wait(120) == 1, again.stderr
    assert re.search(r"; [1-9]\d* done by an earlier run", again.stderr)
    assert read_rows(outputs[1]) == read_rows(outputs[0])
    run = ResumableRun(commands, folders[1], pictures, tmp_path / "model")
    run.check_finished(read_rows(outputs[0]))
    assert len(digests(folders[1])) == 3
