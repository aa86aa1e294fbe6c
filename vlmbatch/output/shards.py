"""A folder of Parquet files, each of which appears whole and then never changes.

out/part-000000.parquet    rows 0 to n - 1, as soon as the last of them is written
out/part-000001.parquet    rows n to 2n - 1
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from vlmbatch.durable.durable_file import FILES, FileSystem, reported
from vlmbatch.durable.run_paths import temporary_path
from vlmbatch.errors import OutputError, UsageError
from vlmbatch.manifest.parquet_file import read_footer
from vlmbatch.output.parquet_writer import ParquetResultWriter
from vlmbatch.output.work_folder import FINGERPRINT_KEY, RUN_ID_KEY
from vlmbatch.types import Result

SHARD_KEY = "vlmbatch.shard"  # "k/of": the shard's number, from 0, and how many there are

SHARD_NAME = re.compile(r"part-([0-9]{6,})\.parquet")
_TEMPORARY_NAME = re.compile(r"\.part-[0-9]{6,}\.parquet\.vlmbatch\.tmp")


@dataclass(frozen=True, slots=True)
class Shard:
    """A finished shard of some run, by its own metadata."""

    path: Path
    number: int
    num_shards: int
    num_rows: int
    run_id: str
    fingerprint: str | None


def shard_name(number: int) -> str:
    return f"part-{number:06}.parquet"


def list_shards(folder: Path) -> list[Shard]:
    """The shards in ``folder``, of whatever runs, by number; none when there is no folder.

    Raises:
        OutputError: the folder or a file in it cannot be read.
    """
    shards = (read_shard(path) for path in _entries(folder) if SHARD_NAME.fullmatch(path.name))
    return sorted((shard for shard in shards if shard), key=lambda shard: shard.number)


def read_shard(path: Path) -> Shard | None:
    """What the file says of itself; None when no run of ours gave it this name.

    Raises:
        OutputError: the file cannot be read.
    """
    try:
        footer = read_footer(path)
    except pa.ArrowInvalid:
        return None
    except OSError as error:
        if error.errno is None or path.is_dir():  # without errno: the footer is no footer
            return None
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error
    keys = (RUN_ID_KEY, FINGERPRINT_KEY, SHARD_KEY)
    run_id, fingerprint, label = ((footer.metadata or {}).get(key.encode()) for key in keys)
    place = re.fullmatch(rb"([0-9]+)/([0-9]+)", label or b"")
    if run_id is None or place is None or path.name != shard_name(int(place[1])):
        return None
    return Shard(
        path,
        int(place[1]),
        int(place[2]),
        footer.num_rows,
        run_id.decode(),
        None if fingerprint is None else fingerprint.decode(),
    )


def finished_shards(folder: Path) -> list[Shard]:
    """All shards of the one run that ``folder`` is the finished output of, in order.

    Raises:
        UsageError: a shard is missing, or is of another run.
        OutputError: the folder or a file in it cannot be read.
    """
    shards = list_shards(folder)
    num_shards = shards[0].num_shards if shards else 1
    found = {shard.number: shard for shard in shards}
    for number in range(max(num_shards, len(shards))):
        shard, path = found.get(number), folder / shard_name(number)
        if shard is None and path.exists():
            raise UsageError(
                f"{path} is damaged, or was not written by vlmbatch: put the right file back, or "
                "move this one away and run with --overwrite to start anew"
            )
        if shard is None:
            problem = "is missing"
        elif shard.run_id != shards[0].run_id:
            problem = f"is of another run than {shards[0].path.name}"
        else:
            continue
        raise UsageError(
            f"{path} {problem}: put the right file back, or run with --overwrite to start anew"
        )
    return shards


class ShardedParquetWriter:
    """Writes shards of ``rows_per_shard`` rows into ``folder``, each committed with its last row.

    ``metadata`` holds the run's id under ``vlmbatch.run_id``. Shards that this run has committed
    before stay as they are, and results of their rows are ignored; others come in order of their
    index. Only the first write (or ``close``) changes the folder: then the run must have begun, as
    the shards of other runs and what a crash left are removed. Other files are never touched.

    Raises:
        UsageError: at construction, when a file that is not ours has the name of a shard, or when
            the run's finished shards are of another number of rows.
        OutputError: by every method, when the file system refuses.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        metadata: Mapping[str, str],
        rows_per_shard: int,
        num_rows: int,
        *,
        files: FileSystem = FILES,
    ) -> None:
        assert rows_per_shard > 0
        self._folder = folder
        self._schema = schema
        self._metadata = metadata
        self._rows_per_shard = rows_per_shard
        self._num_rows = num_rows
        self._num_shards = max(1, -(-num_rows // rows_per_shard))
        self._files = files
        self._written: set[int] = set()
        self._leftovers: list[Path] = []
        self._begun = False
        self._shard: ParquetResultWriter | None = None
        self._number = -1  # of the shard that is being written
        self._next_row = -1
        self._take_stock()

    @property
    def is_complete(self) -> bool:
        """Whether every shard is committed."""
        return len(self._written) == self._num_shards

    def is_written(self, row_index: int) -> bool:
        """Whether the row is in a committed shard."""
        return row_index // self._rows_per_shard in self._written

    def write(self, result: Result) -> None:
        if self.is_written(result.index):
            return
        if self._shard is None:
            self._shard = self._open(result.index // self._rows_per_shard)
        assert result.index == self._next_row, f"row {result.index}, expected {self._next_row}"
        self._shard.write(result)
        self._next_row += 1
        if self._next_row == self._end(self._number):
            self._commit(self._shard)

    def close(self) -> None:
        """Check that every shard is committed; a manifest without rows gets an empty one."""
        self._begin()
        if self._num_rows == 0 and not self.is_complete:
            self._shard = self._open(0)
            self._commit(self._shard)
        assert self.is_complete, f"{len(self._written)} of {self._num_shards} shards are written"

    def abort(self) -> None:
        """Remove the shard that is not whole; those that are stay."""
        if self._shard is not None:
            self._shard.abort()
            self._shard = None

    def _take_stock(self) -> None:
        """Tell the files in the folder apart: done, to be removed, or none of our business."""
        if self._folder.exists() and not self._folder.is_dir():
            raise UsageError(f"{self._folder} is a file: choose a folder, or a name in .parquet")
        for path in _entries(self._folder):
            if _TEMPORARY_NAME.fullmatch(path.name):
                self._leftovers.append(path)
            elif match := SHARD_NAME.fullmatch(path.name):
                self._judge(path, int(match[1]))

    def _judge(self, path: Path, number: int) -> None:
        shard = read_shard(path)
        if shard is None:
            if number < self._num_shards:
                raise UsageError(
                    f"{path} was not written by vlmbatch, or is damaged, but has the name of a "
                    "shard: move it away, or choose another folder"
                )
        elif shard.run_id != self._metadata[RUN_ID_KEY]:
            self._leftovers.append(path)
        else:
            expected = self._end(number) - number * self._rows_per_shard
            if (shard.num_rows, shard.num_shards) != (expected, self._num_shards):
                raise UsageError(
                    f"{path} is one of {shard.num_shards} shards and has {shard.num_rows} rows, "
                    f"expected {self._num_shards} and {expected}: resume with the --shard-rows "
                    "that the run began with, or run with --overwrite to start anew"
                )
            self._written.add(number)

    def _end(self, number: int) -> int:
        """The row after the shard's last."""
        return min((number + 1) * self._rows_per_shard, self._num_rows)

    def _begin(self) -> None:
        if self._begun:
            return
        with reported(self._folder):
            if not self._folder.is_dir():
                self._files.make_folder(self._folder)
                self._files.fsync_folder(self._folder.parent)
            for path in self._leftovers:
                self._files.unlink(path)
            if self._leftovers:
                self._files.fsync_folder(self._folder)
        self._begun = True

    def _open(self, number: int) -> ParquetResultWriter:
        self._begin()
        self._number = number
        self._next_row = number * self._rows_per_shard
        path = self._folder / shard_name(number)
        return ParquetResultWriter(
            path,
            self._schema,
            {**self._metadata, SHARD_KEY: f"{number}/{self._num_shards}"},
            temporary=temporary_path(path),
            files=self._files,
        )

    def _commit(self, shard: ParquetResultWriter) -> None:
        shard.close()
        self._written.add(self._number)
        self._shard = None


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise OutputError(f"{folder} cannot be read: {error.strerror}") from error
