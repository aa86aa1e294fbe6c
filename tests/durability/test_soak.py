"""Many rows: memory and journal stay bounded, and a row costs little beside its model.

The whole, with its figures: ``make soak``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from fast_command import FastCommands
from model_folder import make_model_folder
from resumable_runs import WITH_ERRORS, ResumableRun, write_manifest

MAX_GROWTH = 4 * 2**20  # of memory, from the first half of the run to the second
MAX_JOURNAL_ROW = 150  # bytes
MAX_MICROSECONDS = 150


@dataclass
class Soak:
    """A run as it looks from outside. Sizes in bytes, times in microseconds of processor time."""

    num_rows: int
    memory: list[int] = field(default_factory=list)
    journal: int = 0
    engine_time: int = 0
    time: int = 0

    def watch(self, run: ResumableRun) -> None:
        work = run.output.with_name(f"{run.output.name}.vlmbatch")
        command = run.start()
        command.wait_until(lambda: command.has("computed"))
        while not command.ended(0.02):
            self.memory.append(resident(command.pid))
            self.journal = max(self.journal, size_of(work.glob("journal-*")))
        assert command.wait() == WITH_ERRORS, command.stderr
        self.engine_time, self.time = command.told("microseconds")

    @property
    def growth(self) -> int:
        half = len(self.memory) // 2
        return max(self.memory[half:]) - max(self.memory[:half])

    @property
    def time_a_row(self) -> float:
        """Outside the engine, start and end of the command included."""
        return (self.time - self.engine_time) / self.num_rows

    def __str__(self) -> str:
        return (
            f"{self.num_rows:,} rows: {self.time_a_row:.0f} us a row outside the engine, "
            f"{self.engine_time / self.num_rows:.0f} us in the fake one; "
            f"memory at most {max(self.memory) / 2**20:.0f} MiB, {self.growth / 2**20:+.1f} MiB "
            f"in the second half; journal {self.journal / self.num_rows:.0f} bytes a row"
        )


def resident(pid: int) -> int:
    """Bytes of memory that the process has of its own; none once it has ended."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


def size_of(files: Iterable[Path]) -> int:
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # the run has ended
            total += file.stat().st_size
    return total


def soak(commands: FastCommands, folder: Path, num_rows: int, **around: int) -> Soak:
    """Answer so many rows, and check that all of them are there."""
    manifest = write_manifest(folder / "manifest.jsonl", num_rows)
    model = make_model_folder(folder / "model")
    (folder / "run").mkdir()
    run = ResumableRun(commands, folder / "run", manifest, model, max_num_seqs=256, **around)
    seen = Soak(num_rows)
    seen.watch(run)
    indexes = pq.read_table(run.output, columns=["row_index"])["row_index"]
    assert indexes.to_pylist() == list(range(num_rows))
    assert not list(run.output.with_name("out.parquet.vlmbatch").glob("journal-*"))
    assert 0 < seen.journal < MAX_JOURNAL_ROW * num_rows
    return seen


def test_memory_and_journal_are_bounded(commands, tmp_path):
    """In little; the row groups are small, so that several of them pass in each half."""
    seen = soak(commands, tmp_path, 12_000, row_group_rows=512)
    assert seen.growth < 2 * MAX_GROWTH  # much of it is the start


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name, FastCommands(Path(name)) as server:
        result = soak(server, Path(name), int(sys.argv[1]))
    print(result)
    assert result.growth < MAX_GROWTH
    assert result.time_a_row < MAX_MICROSECONDS
