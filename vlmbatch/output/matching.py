"""Two outputs joined by the ids of their rows: 26 bytes a row are held, whatever their order."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmbatch.manifest.arrow_values import ValueReader
from vlmbatch.manifest.json_text import dump_json

COMPARED = ("id", "status", "text", "error_code")
MAX_VALUES = 50  # different ones that a column has, to be looked at by value
_MAX_CODES = 254
_NULL = "(null)"


@dataclass(slots=True)
class ColumnValues:
    """A column's values by row, as long as there are few different ones.

    ``codes``: shape (N,), of each row its value's number in ``values``.
    """

    values: dict[str, int] = field(default_factory=dict)
    codes: array[int] = field(default_factory=lambda: array("B"))
    is_varied: bool = False  # too many to be told apart

    def add(self, column: pa.ChunkedArray, name: str) -> None:
        if self.is_varied:
            return
        for chunk in column.chunks:
            for value in ValueReader().column(name, chunk):
                text = _NULL if value is None else _text(value)
                code = self.values.setdefault(text, len(self.values))
                if code >= MAX_VALUES:
                    self.is_varied, self.codes = True, array("B")
                    return
                self.codes.append(code)


def _text(value: object) -> str:
    return value if isinstance(value, str) else dump_json(value)


@dataclass(slots=True)
class RowDigests:
    """Of each row of an output a digest of its id, one of its answer, and whether it has one."""

    columns: dict[str, ColumnValues]
    ids: array[int] = field(default_factory=lambda: array("Q"))
    answers: array[int] = field(default_factory=lambda: array("Q"))
    ok: array[int] = field(default_factory=lambda: array("B"))

    @classmethod
    def of_columns(cls, names: Sequence[str]) -> RowDigests:
        return cls({name: ColumnValues() for name in names})

    def add(self, results: pa.Table, extra: pa.Table) -> None:
        """Take in the next rows: the columns ``COMPARED``, and those of ``of_columns``."""
        columns = (results[name].to_pylist() for name in COMPARED)
        for row_id, status, text, code in zip(*columns, strict=True):
            self.ids.append(_digest(row_id))
            self.answers.append(_digest(f"ok {text}" if status == "ok" else f"error {code}"))
            self.ok.append(status == "ok")
        for name, values in self.columns.items():
            values.add(extra[name], name)


@dataclass(frozen=True, slots=True)
class Matching:
    """``left`` and ``right``: rows with one id, by their numbers in the two outputs, shape (N,), in
    the order of the left. ``same``: with one answer, or one error. ``both_ok``: both answered.

    ``only_left`` and ``only_right`` have no partner.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    same: NDArray[np.bool_]
    left_ok: NDArray[np.bool_]
    right_ok: NDArray[np.bool_]
    only_left: NDArray[np.int64]
    only_right: NDArray[np.int64]


def match(left: RowDigests, right: RowDigests) -> Matching:
    """Join two outputs. Of rows with one id in one output, the first counts."""
    left_ids, right_ids = (np.frombuffer(rows.ids, np.uint64) for rows in (left, right))
    left_ids, left_first = np.unique(left_ids, return_index=True)
    right_ids, right_first = np.unique(right_ids, return_index=True)
    _, in_left, in_right = np.intersect1d(
        left_ids, right_ids, assume_unique=True, return_indices=True
    )
    order = np.argsort(left_first[in_left])
    left_rows = left_first[in_left][order]
    right_rows = right_first[in_right][order]
    left_answers, right_answers = (np.frombuffer(rows.answers, np.uint64) for rows in (left, right))
    return Matching(
        left_rows,
        right_rows,
        left_answers[left_rows] == right_answers[right_rows],
        np.frombuffer(left.ok, np.uint8)[left_rows] == 1,
        np.frombuffer(right.ok, np.uint8)[right_rows] == 1,
        np.sort(np.delete(left_first, in_left)),
        np.sort(np.delete(right_first, in_right)),
    )


def _digest(text: str) -> int:
    """Eight bytes: of ten million texts no two agree but with a chance of one in 370,000."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
