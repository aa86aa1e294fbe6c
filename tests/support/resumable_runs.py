"""One manifest and one output, and the commands that are run on them until it is whole."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from fast_command import Command, FastCommands
from PIL import Image

from vlmbatch.durable.run_paths import work_folder_path

WITH_ERRORS = 1  # the exit status of a run to the end, on these manifests


def write_manifest(path: Path, num_rows: int) -> Path:
    """Rows of two words and a number; some cannot be answered."""
    with path.open("w") as file:
        for index in range(num_rows):
            row: dict[str, Any] = {"id": f"row-{index}", "prompt": f"What is {index}?", "n": index}
            if index % 50 == 17:
                row["prompt"] = None
            if index % 50 == 18:
                row["prompt"] += "?" * 300
            if index % 50 == 19:
                row["max_tokens"] = 1 + index % 3
            file.write(json.dumps(row) + "\n")
    return path


def write_questions(path: Path, num_images: int, num_questions: int) -> Path:
    """Every question of every image, question by question; some images are none."""
    for number in range(num_images):
        picture = path.with_name(f"{number}.png")
        if number % 50 == 17:
            picture.write_bytes(b"no picture")
        else:
            Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(picture)
    with path.open("w") as file:
        for question in range(num_questions):
            for number in range(num_images):
                prompt = f"<image>What is {question} of {number}?"
                row = {"id": f"row-{question}-{number}", "prompt": prompt, "image": f"{number}.png"}
                file.write(json.dumps(row) + "\n")
    return path


def read_rows(output: Path) -> list[dict[str, Any]]:
    """All rows with all columns, in the order in which they stand."""
    files = sorted(output.glob("*.parquet")) if output.is_dir() else [output]
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def digests(folder: Path) -> dict[str, str]:
    """What every file below ``folder`` holds; the lock is rewritten by whoever looks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


class ResumableRun:
    """``vlmbatch run`` on one output in ``folder``, as often as it takes.

    ``acknowledged``: the rows that the journal of any attempt has called safe. Every attempt is
    checked: it may not compute them again, nor change a file that has its final name.
    """

    def __init__(
        self,
        commands: FastCommands,
        folder: Path,
        manifest: Path,
        model: Path,
        *,
        shard_rows: int | None = None,
        **around: Any,
    ) -> None:
        self.folder = folder
        self.output = folder / ("out" if shard_rows else "out.parquet")
        self.arguments: list[object] = ["run", manifest, "-m", model, "-o", self.output]
        self.arguments += ["--image-workers", 0, "--max-tokens", 8]
        if shard_rows:
            self.arguments += ["--shard-rows", shard_rows]
        self.acknowledged: set[int] = set()
        self.killed: list[int] = []  # the rows acknowledged before each SIGKILL that landed
        self._commands = commands
        self._around = around

    def start(self, *options: object, crash_at: str = "", **around: Any) -> Command:
        around = {**self._around, **around}
        return self._commands.start(*self.arguments, *options, crash_at=crash_at, **around)

    def attempt(
        self,
        *options: object,
        kill_after: float | None = None,
        kill_at: int | None = None,
        kept: int = 0,
        **how: Any,
    ) -> int:
        """Run to the end, or to SIGKILL so many seconds after so many rows were computed, and
        ``kept`` of them acknowledged."""
        committed = self.committed()
        command = self.start(*options, **how)
        if kill_at is not None:
            command.ended_before(
                lambda: len(command.computed) >= kill_at and len(command.acknowledged) >= kept
            )
        if kill_after is not None:
            command.ended(kill_after)
        if kill_at is not None or kill_after is not None:
            command.send_signal(signal.SIGKILL)
        status = command.wait()
        again = self.acknowledged.intersection(command.computed)
        assert not again, f"acknowledged rows were computed again: {sorted(again)}"
        assert "Traceback" not in command.stderr and status != 70, command.stderr
        self.acknowledged.update(command.acknowledged)
        after = self.committed()
        for name, (run_id, digest) in committed.items():
            if run_id == self.run_id():
                assert after.get(name) == (run_id, digest), f"{name} has changed"
        if status == -signal.SIGKILL:
            self.killed.append(len(self.acknowledged))
        return status

    def committed(self) -> dict[str, tuple[str, str]]:
        """Run id and digest of the output's files; whoever looks must find each of them whole."""
        files = self.output.glob("part-*") if self.output.is_dir() else [self.output]
        found = {}
        for file in files:
            if file.exists():
                run_id = pq.read_metadata(file).metadata[b"vlmbatch.run_id"].decode()
                found[file.name] = run_id, hashlib.sha256(file.read_bytes()).hexdigest()
        return found

    def run_id(self) -> str | None:
        """The run that the work folder is of."""
        record = work_folder_path(self.output) / "run.json"
        return json.loads(record.read_text())["id"] if record.exists() else None

    def check_finished(self, expected: Sequence[dict[str, Any]]) -> None:
        """The rows are those of an undisturbed run, and nothing else is left."""
        rows = read_rows(self.output)
        assert [row["id"] for row in rows] == [row["id"] for row in expected]
        assert rows == expected
        work = work_folder_path(self.output)
        assert {*self.folder.iterdir()} == {self.output, work} - {*self.output.glob("_*")}
        kept = {path.name.partition("-")[0] for path in work.iterdir()}
        assert kept == {"lock", "run.json", "keys"}
        if self.output.is_dir():
            others = {*self.output.iterdir()} - {*self.output.glob("part-*.parquet")}
            assert others <= {work}

    def finish(self, expected: Sequence[dict[str, Any]]) -> None:
        """Run to the end and check the rows; a run that has ended already has nothing to do."""
        assert self.attempt() == WITH_ERRORS
        self.check_finished(expected)
