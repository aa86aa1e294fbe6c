"""Answers of an earlier run that a new one keeps: journaled for it before it begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vlmbatch.durable.journal import Journal
from vlmbatch.durable.journal_writer import JournalWriter
from vlmbatch.durable.row_keys import KEY_BYTES, RowKeys, RowKeyWriter, row_key
from vlmbatch.output.reader import OutputReader
from vlmbatch.types import Result, Row

_ANSWER_COLUMNS = (
    "id",
    "text",
    "finish_reason",
    "prompt_tokens",
    "image_tokens",
    "completion_tokens",
)
_BLOCK_ROWS = 2**20  # rows whose ids and keys are held while their old answers are read in order


class PreviousResults(Protocol):
    """The results of an earlier run, by its row indexes."""

    def answered(self) -> NDArray[np.bool_]:
        """Which rows have an answer and no error. Rows beyond the end have none. Shape (N,)."""
        ...

    def result(self, row_index: int) -> Result:
        """The result of an answered row, without pass-through columns; ascending is cheapest."""
        ...


class OutputResults:
    """The results in a finished output of ``num_rows`` rows. Holds one row group in memory.

    Raises:
        UsageError: the output has not the rows 0 to ``num_rows`` - 1 in order (of a part, those
            behind its first), or a shard is missing, or the columns are not those of an output.
        OutputError: by every method, when a file cannot be read.
    """

    def __init__(self, output: Path, num_rows: int) -> None:
        self._reader = OutputReader(output)
        self._group = -1
        self._columns: list[list[Any]] = []
        self._details: dict[str, list[Any]] = {}
        if self._reader.num_rows != num_rows:
            self.close()
            raise self._reader.changed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def answered(self) -> NDArray[np.bool_]:
        import pyarrow.compute as pc

        starts = self._reader.starts
        found = np.empty(self._reader.num_rows, np.bool_)
        for group in range(self._reader.num_groups):
            table = self._reader.read(group, ["row_index", "status"])
            indexes = table["row_index"].to_numpy()
            first = self._reader.first_row + starts[group]
            if not np.array_equal(indexes, np.arange(first, first + len(indexes))):
                raise self._reader.changed()
            found[starts[group] : starts[group + 1]] = (
                pc.equal(table["status"], "ok").fill_null(False).to_numpy()
            )
        return found

    def result(self, row_index: int) -> Result:
        group = self._reader.group_of(row_index)
        if group != self._group:
            asked = self._reader.details
            table = self._reader.read(group, [*_ANSWER_COLUMNS, *asked])
            self._columns = [table[name].to_pylist() for name in _ANSWER_COLUMNS]
            self._details = {name: table[name].to_pylist() for name in asked}
            self._group = group
        place = row_index - int(self._reader.starts[group])
        details = {name: values[place] for name, values in self._details.items()}
        result = Result(row_index, *(column[place] for column in self._columns))
        return replace(result, details=details)

    def close(self) -> None:
        self._reader.close()


class JournalResults:
    """The results of a run that was not finished.

    Raises:
        OutputError: by every method, when the journal cannot be read.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def answered(self) -> NDArray[np.bool_]:
        rows = self._journal.rows()
        found = np.zeros(int(rows[-1]) + 1 if len(rows) else 0, np.bool_)
        for row in rows.tolist():
            found[row] = self._journal.read(row).error_code is None
        return found

    def result(self, row_index: int) -> Result:
        return self._journal.read(row_index)


def seed_without_errors(source: PreviousResults, journal: JournalWriter) -> int:
    """Journal every answer: what a new run on the same rows has left is those with errors.

    Returns:
        How many rows are kept, all of them acknowledged.

    Raises:
        UsageError, OutputError: those of ``source`` and ``journal``.
    """
    rows = np.flatnonzero(source.answered()).tolist()
    for row in rows:
        journal.append(source.result(row))
    journal.sync()
    return len(rows)


def seed_unchanged(
    sources: Sequence[tuple[PreviousResults, Path]],
    rows: Iterator[Row],
    journal: JournalWriter,
    new_keys: RowKeyWriter,
) -> int:
    """Journal the answer of each of the new ``rows`` that has the key of an answered old row.

    It is journaled under the new row's index and id. ``sources``: results, and the file of their
    rows' keys; ``new_keys`` takes those of the new rows, as they are now: what is kept is the
    answer to them. Of old rows with one key, the first answered counts.

    Returns:
        How many rows are kept, all of them acknowledged.

    Raises:
        UsageError, OutputError: those of ``sources``, ``rows`` and ``journal``.
    """
    keys = [RowKeys.load(path, results.answered()) for results, path in sources]
    num_kept = 0
    for block in _blocks(rows):
        new_keys.append(bytes(block.keys))
        owners, old_rows = _found(keys, bytes(block.keys))
        places = np.lexsort((old_rows, owners))
        for place in places[np.count_nonzero(owners < 0) :].tolist():
            results, _ = sources[int(owners[place])]
            result = results.result(int(old_rows[place]))
            journal.append(replace(result, index=block.start + place, id=block.ids[place]))
            num_kept += 1
    journal.sync()
    return num_kept


def _found(keys: Sequence[RowKeys], sought: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each key sought which of ``keys`` has it, -1 for none, and at which row. Shapes (N,)."""
    old_rows = np.full(len(sought) // KEY_BYTES, -1, np.int64)
    owners = old_rows.copy()
    for number, known in enumerate(keys):
        found = known.find(sought)
        new = (owners < 0) & (found >= 0)
        owners[new], old_rows[new] = number, found[new]
    return owners, old_rows


@dataclass(slots=True)
class _Block:
    """Consecutive rows from index ``start`` on: all that is kept of them."""

    start: int
    ids: list[str] = field(default_factory=list)
    keys: bytearray = field(default_factory=bytearray)


def _blocks(rows: Iterator[Row]) -> Iterator[_Block]:
    while (first := next(rows, None)) is not None:
        block = _Block(first.index)
        for row in chain((first,), islice(rows, _BLOCK_ROWS - 1)):
            block.ids.append(row.id)
            block.keys += row_key(row)
        yield block
