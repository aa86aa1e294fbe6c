"""Arrow types of the manifest's columns in the output, and arrays of them from Python values."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# What pyarrow raises for a value that is not of the array's type.
UNFIT = (pa.ArrowException, OverflowError, TypeError, ValueError)


@cache
def stored_type(data_type: pa.DataType) -> pa.DataType:
    """The type of a pass-through column in the output, at every depth of it.

    Dictionaries and views are layouts, which Parquet lacks or applies by itself, and bool8 is bool.
    Other extension types are kept or, where they cannot be written, what they are stored as.

    Raises:
        ArrowException: a column of the type cannot be written.
    """
    kept = _mapped(data_type, _without_layout)
    try:
        _check_writable(kept)
    except pa.ArrowException:
        kept = _mapped(kept, _storage)
        _check_writable(kept)
    return kept


def to_array(values: list[Any], data_type: pa.DataType) -> pa.Array:
    """An array of ``data_type`` from values as ``ValueReader`` gives them.

    Raises:
        ArrowException, OverflowError, TypeError, ValueError: a value is not of the type.
    """
    built = _mapped(data_type, _buildable)
    try:
        array = pa.array(values, type=built)
    except UNFIT:
        array = pa.array([_converted(value, built) for value in values], type=built)
    return array if built == data_type else array.cast(data_type)


def _converted(value: Any, data_type: pa.DataType) -> Any:
    """The value with times in the type's unit, and uuids as bytes, wherever in it they stand."""
    if isinstance(value, uuid.UUID):
        return value.bytes
    if isinstance(value, pa.Scalar):  # another file of the folder had another unit of time
        return value if value.type == data_type else value.cast(data_type)
    if isinstance(value, list) and pa.types.is_map(data_type):
        key, item = data_type.key_type, data_type.item_type
        return [(_converted(pair[0], key), _converted(pair[1], item)) for pair in value]
    if isinstance(value, list) and data_type.num_fields == 1:
        return [_converted(each, data_type.value_type) for each in value]
    if isinstance(value, dict) and pa.types.is_struct(data_type):
        return {field.name: _converted(value.get(field.name), field.type) for field in data_type}
    return value


def _check_writable(data_type: pa.DataType) -> None:
    column = to_array([None], data_type)
    pq.write_table(pa.table([column], names=["column"]), pa.BufferOutputStream())


def _mapped(data_type: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with ``change`` applied to it and all that is nested in it."""
    kind = change(data_type)

    def field(field: pa.Field) -> pa.Field:
        return field.with_type(_mapped(field.type, change))

    if pa.types.is_struct(kind):
        return pa.struct([field(each) for each in kind])
    if pa.types.is_map(kind):
        return pa.map_(field(kind.key_field), field(kind.item_field), kind.keys_sorted)
    if pa.types.is_list(kind):
        return pa.list_(field(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(field(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(field(kind.value_field), kind.list_size)
    return kind


def _without_layout(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if isinstance(kind, pa.Bool8Type):
        return pa.bool_()
    if pa.types.is_list_view(kind):
        return pa.list_(kind.value_field)
    if pa.types.is_large_list_view(kind):
        return pa.large_list(kind.value_field)
    if kind == pa.string_view():
        return pa.string()
    return pa.binary() if kind == pa.binary_view() else kind


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _buildable(kind: pa.DataType) -> pa.DataType:
    """What pyarrow makes arrays of from Python values, as far as it is not the type itself."""
    return pa.float32() if pa.types.is_float16(kind) else _storage(kind)
