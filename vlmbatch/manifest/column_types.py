"""The Arrow type of a column of JSON values, widened batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from vlmbatch.manifest.ids import MAX_EXACT
from vlmbatch.manifest.schema import JSON_TEXT

_MAX_NESTING = 16  # Parquet readers refuse deep schemas
_MAX_LEAVES = 256  # objects with ever new keys would grow the schema without end


class InferredColumn:
    """One pass-through column: append values to ``pending``, ``flush`` now and then."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pending: list[Any] = []
        self._type = pa.null()
        self._has_large_integers = False
        self._is_json_text = False

    def flush(self) -> None:
        """Widen the type by the pending values."""
        if self.pending and not self._is_json_text:
            try:
                values = pa.array(self.pending)
                self._type = common_type(self._type, values.type)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                self._is_json_text = True  # values of no common type
            else:
                self._has_large_integers |= any(
                    _has_large_integers(leaf) for leaf in _leaves(values)
                )
                self._is_json_text = sum(
                    1 for _ in _leaf_types(self._type)
                ) > _MAX_LEAVES or _has_booleans_as_numbers(self.pending, values.type)
        self.pending = []

    def field(self) -> pa.Field:
        """The column's common type, or marked as JSON text when it has none."""
        leaves = [] if self._is_json_text else list(_leaf_types(self._type))
        if (
            self._is_json_text
            or any(depth > _MAX_NESTING or pa.types.is_struct(leaf) for leaf, depth in leaves)
            or (self._has_large_integers and any(leaf == pa.float64() for leaf, _ in leaves))
        ):
            return pa.field(self.name, pa.string(), metadata=JSON_TEXT)
        return pa.field(self.name, _without_nulls(self._type))


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """The narrowest type that holds both; raises ArrowInvalid or ArrowTypeError without one."""
    if first == second:
        return first
    schemas = [pa.schema([("", first)]), pa.schema([("", second)])]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _leaf_types(data_type: pa.DataType, depth: int = 0) -> Iterator[tuple[pa.DataType, int]]:
    """Yield the innermost types with their depths; a struct without fields is a leaf."""
    if pa.types.is_list(data_type):
        yield from _leaf_types(data_type.value_type, depth + 1)
    elif pa.types.is_struct(data_type) and data_type.num_fields:
        for field in data_type:
            yield from _leaf_types(field.type, depth + 1)
    else:
        yield data_type, depth


def _leaves(values: pa.Array) -> Iterator[pa.Array]:
    if pa.types.is_list(values.type):
        yield from _leaves(values.flatten())
    elif pa.types.is_struct(values.type):
        for child in values.flatten():
            yield from _leaves(child)
    else:
        yield values


def _has_large_integers(values: pa.Array) -> bool:
    if values.type != pa.int64():
        return False
    import pyarrow.compute as pc

    bounds = pc.min_max(values).as_py()
    return bounds["min"] is not None and (bounds["min"] < -MAX_EXACT or bounds["max"] > MAX_EXACT)


def _has_booleans_as_numbers(values: list[Any], data_type: pa.DataType) -> bool:
    """Whether pyarrow read true as 1.0: it does among floats, though not among integers."""
    if pa.types.is_floating(data_type):
        return bool in set(map(type, values))
    if pa.types.is_list(data_type):
        items = [item for value in values if value for item in value]
        return _has_booleans_as_numbers(items, data_type.value_type)
    if pa.types.is_struct(data_type):
        return any(
            _has_booleans_as_numbers(
                [value.get(field.name) for value in values if value], field.type
            )
            for field in data_type
        )
    return False


def _without_nulls(data_type: pa.DataType) -> pa.DataType:
    """Replace the type of values that are always null, which few readers know, by string."""
    if pa.types.is_null(data_type):
        return pa.string()
    if pa.types.is_list(data_type):
        return pa.list_(_without_nulls(data_type.value_type))
    if pa.types.is_struct(data_type):
        return pa.struct([(field.name, _without_nulls(field.type)) for field in data_type])
    return data_type
