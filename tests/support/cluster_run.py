"""Runs on a Ray cluster of this machine, beside one without."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import real_command
from fast_command import Command

from vlmbatch.durable.lock import lock_holder

SAMPLES = Path(__file__).parents[2] / "samples"
RUN_ID = b"vlmbatch.run_id"
SECONDS = 120.0
LOCKS = "out/_vlmbatch/part-*/lock"
STAGING_LOCKS = "work/part-*/put.lock"  # where a node's --work-dir is work/


@dataclass
class ClusterRun:
    """A manifest in ``folder``, to be answered into ``output`` on the cluster at ``address``."""

    folder: Path
    address: str
    options: tuple[object, ...] = ("--max-tokens", 8, "--shard-rows", 4)
    output: str = "out/"

    @property
    def model(self) -> tuple[object, ...]:
        return ("-m", SAMPLES / "tiny-llava", "--image-workers", 0, "--no-progress", *self.options)

    def start(self, *options: object) -> Command:
        arguments = ("run", "manifest.jsonl", *self.model, "-o", self.output, "--ray", self.address)
        return real_command.start(*arguments, *options, folder=self.folder)

    def run(self, *options: object) -> tuple[int, str, dict[str, Any]]:
        """Exit status, standard error and summary of a whole run."""
        summary = self.folder / "summary.json"
        command = self.start("--summary-json", summary, *options)
        status = command.wait(SECONDS)
        assert "Traceback" not in command.stderr and "internal error" not in command.stderr
        return status, command.stderr, json.loads(summary.read_text())

    def rows_done(self) -> int:
        """As `vlmbatch status` tells it."""
        done = real_command.run("status", self.output, "--json", folder=self.folder)
        return int(json.loads(done.stdout)["rows_done"]) if done.returncode != 2 else 0

    def wait_for_advice(self, advice: str) -> None:
        """Wait until `vlmbatch status` says what to do next."""
        deadline = time.monotonic() + SECONDS
        told = ""
        while told != advice:
            assert time.monotonic() < deadline, told
            done = real_command.run("status", self.output, "--json", folder=self.folder)
            told = json.loads(done.stdout)["next_step"]

    def wait_for_rows(self, command: Command, count: int) -> None:
        deadline = time.monotonic() + SECONDS
        while self.rows_done() < count:
            assert not command.ended(0.2) and time.monotonic() < deadline, command.stderr

    def kill_worker(self, command: Command) -> None:
        """Kill a process that writes a part, by its lock, once there is one."""
        while not command.ended(0.1):
            for lock in sorted([*self.folder.glob(LOCKS), *self.folder.glob(STAGING_LOCKS)]):
                holder = lock_holder(lock)
                if holder is not None and holder.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(holder.pid, signal.SIGKILL)
                        return
        raise AssertionError(command.stderr)

    def assert_as_one_machine(self) -> None:
        """The merged parts are what one run writes, but for the run's id."""
        self.merge(self.output, "merged.parquet")
        self.run_here("one.parquet", "--overwrite")
        self.assert_same("one.parquet", "merged.parquet")

    def run_here(self, output: str, *options: object) -> None:
        """The same rows without the cluster."""
        model = [option for option in self.model if option != "--shard-rows"]
        model.remove(self.options[self.options.index("--shard-rows") + 1])
        arguments = ("run", "manifest.jsonl", *model, "-o", output, *options)
        done = real_command.run(*arguments, folder=self.folder)
        assert done.returncode in (0, 1), done.stderr

    def merge(self, parts: str, output: str) -> None:
        done = real_command.run("merge", parts, "-o", output, "--overwrite", folder=self.folder)
        assert done.returncode in (0, 1), done.stderr

    def assert_same(self, *outputs: str) -> None:
        """Tables and metadata are equal, but for the run's id."""
        one, other = (pq.read_table(self.folder / name) for name in outputs)
        assert one.equals(other) and one.schema.equals(other.schema)
        mine, theirs = (dict(table.schema.metadata) for table in (one, other))
        del mine[RUN_ID], theirs[RUN_ID]
        assert mine == theirs


def write_manifest(folder: Path, num_rows: int) -> None:
    """Rows of the samples again and again, some sampled, two of 30 past answering."""
    lines = (SAMPLES / "manifest.jsonl").read_text().splitlines()
    rows = []
    for number in range(num_rows):
        row = json.loads(lines[number % len(lines)])
        row["id"] = f"row-{number}"
        if number % 3 == 0:
            row["temperature"] = 0.9
        rows.append(json.dumps(row) + "\n")
    (folder / "manifest.jsonl").write_text("".join(rows))
