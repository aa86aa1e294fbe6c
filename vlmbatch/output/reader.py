"""Reads a finished output, one file or a folder of shards, a row group at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlmbatch.errors import OutputError, UsageError
from vlmbatch.manifest.parquet_file import LocalParquetFile
from vlmbatch.manifest.schema import RESULT_SCHEMA, column_prefix, detail_name
from vlmbatch.output.all_parts import all_parts
from vlmbatch.output.parts import parts_named, read_part
from vlmbatch.output.shards import finished_shards
from vlmbatch.types import ErrorExample


class OutputReader:
    """The result columns of ``output``, in manifest order, by their names without a prefix.

    Holds one file open. Not thread-safe.

    Raises:
        UsageError: a shard is missing, or something else has changed the columns.
        OutputError: by every method, when a file cannot be read.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._groups: list[tuple[Path, int]] = []
        self._path: Path | None = None
        self._file: pq.ParquetFile | None = None
        self.details: list[str] = []  # columns beyond those of every output
        starts = [0]
        self.extra_schema = pa.schema([])  # of the columns that passed through
        self.metadata: dict[bytes, bytes] = {}
        for path in _files(output):
            file = self._open(path)
            schema = file.schema_arrow
            self._check_columns(path, schema)
            self.extra_schema = pa.schema(list(schema)[len(RESULT_SCHEMA) :])
            self.metadata = schema.metadata or {}
            names = map(detail_name, schema)
            self.details = [name for name in names if name is not None]  # the same in every file
            for group in range(file.num_row_groups):
                self._groups.append((path, group))
                starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        part = read_part(output)
        self.first_row = 0 if part is None else part.info.first_row  # its place in the manifest
        self.starts = np.array(starts)  # (num_groups + 1,) int64: the groups' first rows, the end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def num_rows(self) -> int:
        return int(self.starts[-1])

    @property
    def num_groups(self) -> int:
        return len(self._groups)

    def group_of(self, row_index: int) -> int:
        """The row group in which the row stands."""
        return int(np.searchsorted(self.starts, row_index, side="right")) - 1

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of a row group, in the order of the schema."""
        path, _ = self._groups[group]
        prefix = column_prefix(self._open(path).metadata.metadata)
        table = self.read_extra(group, [f"{prefix}{name}" for name in columns])
        return table.rename_columns([name.removeprefix(prefix) for name in table.column_names])

    def read_extra(self, group: int, names: Sequence[str]) -> pa.Table:
        """Columns of a row group by the names that they have in the file."""
        path, number = self._groups[group]
        try:
            return self._open(path).read_row_group(number, columns=names, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise unreadable_output(path, error) from error

    def changed(self) -> UsageError:
        """To be raised when the rows are not those that a run has written."""
        return changed_output(self._output)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = self._path = None

    def _open(self, path: Path) -> pq.ParquetFile:
        if path != self._path or self._file is None:
            self.close()
            try:
                self._file = LocalParquetFile(path)
            except (pa.ArrowException, OSError) as error:
                raise unreadable_output(path, error) from error
            self._path = path
        return self._file

    def _check_columns(self, path: Path, schema: pa.Schema) -> None:
        prefix = column_prefix(schema.metadata)
        if len(schema) < len(RESULT_SCHEMA) or any(
            not schema.field(position).equals(expected.with_name(f"{prefix}{expected.name}"))
            for position, expected in enumerate(RESULT_SCHEMA)
        ):
            self.close()
            raise UsageError(
                f"{path} does not start with the columns of an output: give the output of a run. "
                "If it was one, something else has changed it: put the original back, or start "
                "the run anew with --overwrite"
            )


def _files(output: Path) -> list[Path]:
    """The files of an output, in the manifest's order."""
    if not output.is_dir():
        return [output]
    if parts_named(output):
        return [part.path for part in all_parts(output)]
    return [shard.path for shard in finished_shards(output)]


@dataclass(slots=True)
class OutputCounts:
    """What a finished output holds."""

    num_rows: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # rows by error code
    error_examples: dict[str, ErrorExample] = field(default_factory=dict)  # the first of each code


def read_output_counts(output: Path) -> OutputCounts:
    """Count the rows and errors of an output in bounded memory.

    Raises:
        UsageError: a shard is missing, or something else has changed the columns.
        OutputError: a file cannot be read.
    """
    with OutputReader(output) as reader:
        counts = OutputCounts(reader.num_rows)
        for group in range(reader.num_groups):
            count_errors(counts, partial(reader.read, group))
    return counts


def count_errors(counts: OutputCounts, read: Callable[[Sequence[str]], pa.Table]) -> None:
    """Count those of a row group, of which ``read`` gives columns."""
    import pyarrow.compute as pc

    codes = read(["error_code"])["error_code"]
    found = codes.drop_null().value_counts().to_pylist()
    counts.errors.update({item["values"]: item["counts"] for item in found})
    if new := counts.errors.keys() - counts.error_examples.keys():
        table = read(["row_index", "id", "error_code", "error_message"])
        for code in new:
            place = pc.index(codes, code).as_py()
            row = table.slice(place, 1).to_pylist()[0]
            example = ErrorExample(row["row_index"], row["id"], row["error_message"])
            counts.error_examples[code] = example


def changed_output(output: Path) -> UsageError:
    """To be raised when the rows are not those that a run has written."""
    return UsageError(
        f"{output} was changed by something else since it was written, so that its answers cannot "
        "be told by row: put the original back, or run with --overwrite to start anew"
    )


def unreadable_output(path: Path, error: Exception) -> OutputError:
    """To be raised when the file system does not give an output back."""
    reason = getattr(error, "strerror", None) or str(error)
    return OutputError(
        f"{path} cannot be read: {reason}. Check the disk and the file's permissions, then run "
        "again; or run with --overwrite to start anew"
    )
