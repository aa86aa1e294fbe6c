"""Row ids: how they are read, and whether all of them differ."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.manifest.arrow_values import shown_with_type, time_text

_MAX_LATEST = 2**14
MAX_EXACT = 2**53  # the largest integer up to which float64 holds them all


def read_id(values: Mapping[str, Any], column: str, index: int) -> str:
    """A row's id as a string; a row without the column takes its index.

    Where the column is there and holds null or NaN, others have ids, often numbers: that row's is
    ``unknown_id``. Whole numbers of any type give the text of the integer: 5.0 is "5".

    Raises:
        RowError: a value of another type, or a float that may have been another integer.
    """
    if column not in values:
        return str(index)
    value = values[column]
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return unknown_id(index)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        # Integers with gaps are often stored as floats.
        if abs(value) <= MAX_EXACT:
            return str(int(value))
        raise RowError(
            ErrorCode.MANIFEST_LINE_INVALID,
            f"the id {int(value)} is a float: beyond {MAX_EXACT} these do not hold every integer, "
            "so that it may have been another: store ids as integers or strings",
        )
    if isinstance(value, Decimal):
        return str(int(value)) if value == value.to_integral_value() else f"{value:f}"
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, pa.Scalar):
        return time_text(value)
    raise RowError(
        ErrorCode.MANIFEST_LINE_INVALID,
        f"the id must be a string, a whole number, a uuid or a time, got {shown_with_type(value)}",
    )


def may_hold_ids(data_type: pa.DataType) -> bool:
    """Whether ``read_id`` takes values of an Arrow type: text, whole numbers, uuids and times."""
    if pa.types.is_dictionary(data_type):
        return may_hold_ids(data_type.value_type)
    if isinstance(data_type, pa.BaseExtensionType) and not isinstance(data_type, pa.UuidType):
        return not isinstance(data_type, pa.Bool8Type) and may_hold_ids(data_type.storage_type)
    return not (
        data_type.num_fields
        or pa.types.is_boolean(data_type)
        or pa.types.is_binary(data_type)
        or pa.types.is_large_binary(data_type)
        or pa.types.is_fixed_size_binary(data_type)
        or data_type == pa.binary_view()
    )


def unknown_id(index: int) -> str:
    """What stands for the id of a row whose own cannot be read: its index would be the id of
    another row wherever ids are numbers."""
    return f"#{index}"


class NamedRowError(RowError):
    """Of a row that cannot be read, whose ``name`` is known: what a column called id would hold."""

    def __init__(self, error: RowError, name: str) -> None:
        super().__init__(error.code, error.message)
        self.name = name


def id_of_error(error: RowError, column: str, index: int) -> str:
    """The id of a row that cannot be read; ``column``: that of the ids."""
    if isinstance(error, NamedRowError) and column == "id":
        return error.name
    return unknown_id(index)


class IdHashes:
    """The ids of a whole manifest in eight bytes each."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, row_id: str) -> None:
        self._hashes.append(hash(row_id))

    def repeated(self) -> frozenset[int]:
        """Hashes that occur more than once: of a duplicate id or, very rarely, of two ids."""
        hashes = np.sort(np.frombuffer(self._hashes, dtype=np.int64))
        return frozenset(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


class SeenIds:
    """The ids of a stream so far: about ten bytes an id, for moments up to twice as many.

    Of each a hash of eight bytes is kept: two different ids practically never share one. The latest
    are in a set, all others in sorted arrays, each at least twice as long as the next.
    """

    def __init__(self) -> None:
        self._latest: set[int] = set()
        self._sorted: list[NDArray[np.int64]] = []

    def add(self, row_id: str) -> bool:
        """Take an id in; whether it was there already."""
        key = hash(row_id)
        if key in self._latest or any(_holds(hashes, key) for hashes in self._sorted):
            return True
        self._latest.add(key)
        if len(self._latest) == _MAX_LATEST:
            self._settle()
        return False

    def _settle(self) -> None:
        hashes = np.fromiter(self._latest, np.int64, len(self._latest))
        self._latest.clear()
        while self._sorted and len(self._sorted[-1]) < 2 * len(hashes):
            hashes = np.concatenate((self._sorted.pop(), hashes))
        hashes.sort()
        self._sorted.append(hashes)


def _holds(hashes: NDArray[np.int64], key: int) -> bool:
    place = int(hashes.searchsorted(key))
    return place < len(hashes) and int(hashes[place]) == key
