"""Arrow arrays to Python values that lose nothing, and share what a dictionary holds once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pyarrow as pa

Path = tuple[str | int, ...]


class ValueReader:
    """Python values of the batches of one row group.

    Structs become dicts, lists and maps lists (of pairs, for a map). Times of every kind, at every
    depth, stay Arrow scalars: Python's types would lose their range or resolution. Extension types
    are read as what they are stored as, but uuid as ``uuid.UUID`` and bool8 as bool. Rows with the
    same value of a dictionary share one object, also across batches.
    """

    def __init__(self) -> None:
        # By the place of a dictionary in its column: its values by index, as far as they were used.
        self._used: dict[Path, dict[int, Any]] = {}

    def column(self, name: str, array: pa.Array) -> list[Any]:
        """The values of a column; in place of one with text that is not UTF-8, the error.

        Raises:
            ArrowException: a value is none of its dictionary, or cannot be read.
        """
        try:
            return self._values(array, (name,))
        except UnicodeDecodeError:
            return [self._value_or_error(array.slice(row, 1), name) for row in range(len(array))]

    def _value_or_error(self, array: pa.Array, name: str) -> Any:
        try:
            return self._values(array, (name,))[0]
        except UnicodeDecodeError as error:
            return error

    def _values(self, array: pa.Array, path: Path) -> list[Any]:
        kind = array.type
        values: list[Any]
        if pa.types.is_dictionary(kind):
            return self._of_dictionary(array, path)
        if isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.UuidType):
            values = self._values(array.storage, path)
            if isinstance(kind, pa.Bool8Type):
                return [None if value is None else value != 0 for value in values]
            return values
        if pa.types.is_temporal(kind):
            return [scalar if scalar.is_valid else None for scalar in array]
        if pa.types.is_struct(kind):
            names = [field.name for field in kind]
            columns = [self._values(array.field(i), (*path, i)) for i in range(len(names))]
            values = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
            return _with_nulls(values, array)
        if pa.types.is_map(kind):
            first, offsets = _offsets(array)
            keys = self._values(array.keys.slice(first, offsets[-1]), (*path, 0))
            items = self._values(array.items.slice(first, offsets[-1]), (*path, 1))
            return _with_nulls(_split(list(zip(keys, items, strict=True)), offsets), array)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            first, offsets = _offsets(array)
            items = self._values(array.values.slice(first, offsets[-1]), (*path, 0))
            return _with_nulls(_split(items, offsets), array)
        if pa.types.is_fixed_size_list(kind):
            size = kind.list_size
            items = array.values.slice(array.offset * size, len(array) * size)
            offsets = [row * size for row in range(len(array) + 1)]
            return _with_nulls(_split(self._values(items, (*path, 0)), offsets), array)
        if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
            return [self._values(row.values, (*path, 0)) if row.is_valid else None for row in array]
        if pa.types.is_float16(kind):
            array = array.cast(pa.float32())  # or some versions give numpy's numbers
        values = array.to_pylist()
        return values

    def _of_dictionary(self, array: pa.DictionaryArray, path: Path) -> list[Any]:
        used = self._used.setdefault(path, {})
        indices, size = array.indices.to_pylist(), len(array.dictionary)
        for index in {*indices} - {None}:
            if not 0 <= index < size:  # a damaged file's are not looked at by its reader
                raise pa.ArrowInvalid(f"a value is number {index} of a dictionary of {size}")
            scalar = array.dictionary[index]
            # Of the next batch the dictionary is the same, but nothing says that it must be.
            if index not in used or not _is(scalar, used[index]):
                used[index] = self._values(array.dictionary.slice(index, 1), (*path, 0))[0]
        return [None if index is None else used[index] for index in indices]


def _is(scalar: pa.Scalar, value: Any) -> bool:
    """Whether the scalar of a dictionary has this value; large ones are not copied for it."""
    if isinstance(value, bytes):
        return bool(scalar.as_buffer().equals(pa.py_buffer(value)))
    return bool(scalar.equals(value) if isinstance(value, pa.Scalar) else scalar.as_py() == value)


def time_text(time: pa.Scalar) -> str:
    """An Arrow scalar of time as text, to its last digit: ``2024-02-29 12:00:00.000000001``."""
    try:
        text: str = time.cast(pa.string()).as_py()
    except pa.ArrowInvalid:  # a time zone that is not known here
        text = time.cast(pa.timestamp(time.type.unit, "UTC")).cast(pa.string()).as_py()
    return text


def shown(value: Any) -> str:
    """The value in a message. (Arrow's repr fails for times that Python lacks.)"""
    return f"{times_as_text(value)!r:.80}"


def shown_with_type(value: Any) -> str:
    return f"{shown(value)} ({type(value).__name__})"


def times_as_text(value: Any) -> Any:
    """The value with text in the place of Arrow's times, wherever in it they stand."""
    if isinstance(value, pa.Scalar):
        return time_text(value)
    if isinstance(value, dict):
        return {name: times_as_text(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(times_as_text, value))
    return value


def _offsets(array: pa.Array) -> tuple[int, list[int]]:
    """Where the items of a list's or map's rows begin, and the rows' offsets from there."""
    offsets = array.offsets.to_pylist()
    return offsets[0], [offset - offsets[0] for offset in offsets]


def _split(items: list[Any], offsets: list[int]) -> list[Any]:
    return [items[start:end] for start, end in pairwise(offsets)]


def _with_nulls(values: list[Any], array: pa.Array) -> list[Any]:
    if array.null_count == 0:
        return values
    valid = array.is_valid().to_pylist()
    return [value if is_valid else None for value, is_valid in zip(values, valid, strict=True)]


def _reduce_time(time: pa.Scalar) -> tuple[Any, ...]:
    return pa.scalar, (time.value, time.type)


# For pickles: Arrow would make of its scalars Python's values, which do not hold every time.
TIME_REDUCERS = dict.fromkeys(
    (
        pa.Date32Scalar,
        pa.Date64Scalar,
        pa.DurationScalar,
        pa.Time32Scalar,
        pa.Time64Scalar,
        pa.TimestampScalar,
    ),
    _reduce_time,
)
