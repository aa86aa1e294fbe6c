"""The rows of a finished output of any kind, to look at: in order, a block of them at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmbatch.durable.run_paths import RECORD_FILE, work_folder_path
from vlmbatch.durable.run_record import read_record
from vlmbatch.errors import UnfinishedError, UsageError
from vlmbatch.manifest.arrow_values import ValueReader
from vlmbatch.manifest.schema import RESULT_SCHEMA, detail_name, result_values
from vlmbatch.output.openai_lines import (
    HEAD_BYTES,
    check_no_errors,
    errors_path,
    is_batch_output,
    line_head,
    parse_line,
)
from vlmbatch.output.parts import parts_named
from vlmbatch.output.reader import OutputReader, changed_output, unreadable_output
from vlmbatch.output.shards import list_shards
from vlmbatch.types import Result

_BLOCK_ROWS = 4096  # of lines


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One row by its number in the output. ``extra``: the values that passed through. ``texts``:
    all that the row was answered, of which ``result`` has the first; none of an error."""

    number: int
    result: Mapping[str, Any]
    extra: Mapping[str, Any]
    texts: Sequence[str]


class Answers(Protocol):
    """A finished output. ``columns``: the names of those behind the ones of every output.

    ``grouping``: those of them whose values tell kinds of rows; no figures of the answer itself.

    Raises:
        UsageError: by every method, when something else has changed it.
        OutputError: by every method, when a file cannot be read.
    """

    columns: Sequence[str]
    grouping: Sequence[str]
    metadata: Mapping[str, str]
    num_rows: int | None  # None: known when all are read

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def blocks(
        self, results: Sequence[str], extra: Sequence[str] = ()
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        """All rows in order: result columns by their names without a prefix, and others."""
        ...

    def rows(self, wanted: NDArray[np.int64]) -> Iterator[AnswerRow]:
        """The rows with these numbers, which ascend, whole."""
        ...


def open_answers(output: Path) -> Answers:
    """A Parquet file, a folder of shards or of all parts, or a batch file with its errors.

    Raises:
        UsageError: there is no finished output.
        UnfinishedError: shards or parts are missing, as the run goes on or was stopped.
        OutputError: a file cannot be read.
    """
    if not output.exists():
        raise UsageError(
            f"{output}: there is no such output. One that a run has not finished has no file yet: "
            "`vlmbatch status` tells how far it is"
        )
    if is_batch_output(output):
        check_no_errors(output)
        return BatchAnswers(output)
    if not output.is_dir() and output.suffix.lower() != ".parquet":
        raise UsageError(
            f"{output} is no output of a run: name a .parquet file, a folder of them, or a .jsonl "
            "file of a batch's results"
        )
    if output.is_dir() and not parts_named(output):
        _check_shards(output)
    return ParquetAnswers(output)


def _check_shards(folder: Path) -> None:
    record = read_record(work_folder_path(folder) / RECORD_FILE)
    if record is not None and record.state == "running":
        raise UnfinishedError(
            f"{folder}: its run is not finished: `vlmbatch status {folder}` tells how far it is"
        )
    if not list_shards(folder):
        raise UsageError(f"{folder} holds no output of a run: name the folder or file of one")


class ParquetAnswers:
    """``Answers`` of Parquet files. Holds one row group in memory."""

    def __init__(self, output: Path) -> None:
        self._reader = OutputReader(output)
        self.num_rows: int | None = self._reader.num_rows
        extra = self._reader.extra_schema
        self.columns: Sequence[str] = extra.names
        names = (field.name for field in extra if detail_name(field) == "texts")
        self._texts_column = next(names, None)  # where rows may have several answers
        self.grouping: Sequence[str] = [
            field.name for field in extra if detail_name(field) in (None, "choice")
        ]
        self.metadata: Mapping[str, str] = {
            name.decode(): value.decode(errors="replace")
            for name, value in self._reader.metadata.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.close()

    def blocks(
        self, results: Sequence[str], extra: Sequence[str] = ()
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        for group in range(self._reader.num_groups):
            yield self._reader.read(group, results), self._reader.read_extra(group, extra)

    def rows(self, wanted: NDArray[np.int64]) -> Iterator[AnswerRow]:
        starts = self._reader.starts
        for group in range(self._reader.num_groups):
            first, end = np.searchsorted(wanted, starts[group : group + 2])
            if first == end:
                continue
            places = wanted[first:end] - starts[group]
            results = self._reader.read(group, RESULT_SCHEMA.names).take(places).to_pylist()
            found = self._reader.read_extra(group, self.columns)
            values = ValueReader()
            extra = {
                name: [
                    value
                    for place in places.tolist()
                    for value in values.column(name, _one(found[name], place))
                ]
                for name in found.column_names
            }
            for place, result in enumerate(results):
                row = {name: column[place] for name, column in extra.items()}
                texts = row.get(self._texts_column) if self._texts_column else None
                number = int(wanted[first + place])
                yield AnswerRow(number, result, row, _texts(result["text"], texts))


def _texts(first: str | None, several: Sequence[str] | None) -> Sequence[str]:
    if several is not None:
        return several
    return () if first is None else (first,)


def _one(column: pa.ChunkedArray, place: int) -> pa.Array:
    return next(chunk for chunk in column.slice(place, 1).chunks if len(chunk))


class BatchAnswers:
    """``Answers`` of OpenAI's batch files, read from their start each time."""

    def __init__(self, output: Path) -> None:
        self.num_rows: int | None = None
        self._output = output
        self.columns: Sequence[str] = ()
        self.grouping: Sequence[str] = ()
        self.metadata: Mapping[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def blocks(
        self, results: Sequence[str], extra: Sequence[str] = ()
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        schema = pa.schema([RESULT_SCHEMA.field(name) for name in results])
        found = (result_values(result) for result in self._results())
        while block := list(islice(found, _BLOCK_ROWS)):
            rows = [{name: row[name] for name in results} for row in block]
            yield pa.Table.from_pylist(rows, schema), pa.table({})

    def rows(self, wanted: NDArray[np.int64]) -> Iterator[AnswerRow]:
        results = enumerate(self._results())
        for number in wanted.tolist():
            for place, result in results:
                if place == number:
                    texts = _texts(result.text, result.details.get("texts"))
                    yield AnswerRow(number, result_values(result), {}, texts)
                    break

    def _results(self) -> Iterator[Result]:
        files = [self._parsed(path) for path in (self._output, errors_path(self._output))]
        yield from heapq.merge(*files, key=lambda result: result.index)

    def _parsed(self, path: Path) -> Iterable[Result]:
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file):
                    if number == 0 and line_head(line[:HEAD_BYTES]) is None:
                        raise UsageError(
                            f"{path} holds no results of a batch as `vlmbatch run` writes them: "
                            "name an output, not a manifest"
                        )
                    yield parse_line(line)
        except FileNotFoundError as error:
            if path == self._output:
                raise unreadable_output(path, error) from error
        except OSError as error:
            raise unreadable_output(path, error) from error
        except ValueError as error:
            raise changed_output(self._output) from error
