"""Columns of the fields that answers have by a JSON schema: their types, and an answer's values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ConfigError
from vlmbatch.manifest.columns import Columns
from vlmbatch.manifest.schema import JSON_TEXT
from vlmbatch.types import Result

_SCALARS = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
_MAX_REFERENCES = 16  # one behind the other
_MAX_INT64 = 2**63


class _UnfitError(Exception):
    """A value that a column's type cannot hold; the message says which."""


@dataclass(frozen=True, slots=True)
class JsonColumns:
    """``schema``: a field each, those of no simple type as JSON text."""

    schema: pa.Schema

    @classmethod
    def of(cls, json_schema: str) -> JsonColumns:
        """The top-level properties of ``json_schema``.

        Strings, integers, numbers, booleans and lists of these have types of their own, also where
        they may be null or are chosen from an ``enum``.

        Raises:
            ConfigError: it has no properties.
        """
        root = json.loads(json_schema)
        properties = _resolved(root, root).get("properties")
        if not isinstance(properties, dict) or not properties:
            raise ConfigError(
                "--parse-json makes a column of each of the schema's properties, and at its top "
                "level --json-schema has none"
            )
        return cls(pa.schema([_field(name, each, root) for name, each in properties.items()]))

    def values(self, result: Result) -> tuple[dict[str, Any], str | None]:
        """An answer's fields by name, and why there are none, or not all of them.

        A field that the answer lacks is null.
        """
        nothing = dict.fromkeys(self.schema.names)
        if result.text is None:
            return nothing, None
        try:
            answer = json.loads(result.text)
        except (ValueError, RecursionError) as error:
            if result.finish_reason == "length":
                return nothing, f"cut after {result.completion_tokens} tokens: {error}"
            return nothing, f"not JSON: {error}"
        if not isinstance(answer, dict):
            return nothing, f"not a JSON object, but {type(answer).__name__}"
        problems = []
        for field in self.schema:
            try:
                nothing[field.name] = _fitting(answer.get(field.name), field)
            except _UnfitError as error:
                problems.append(f"{field.name}: {error}")
        return nothing, "; ".join(problems) or None


def json_columns(
    config: ManifestConfig, params: SamplingParams, columns: Columns
) -> JsonColumns | None:
    """Those that a run asks for; None: none.

    Raises:
        ConfigError: there is no schema to make them of, or their names are those of others.
    """
    if not config.parse_json:
        return None
    if params.schema_text is None:
        raise ConfigError("--parse-json makes columns of a schema's properties: add --json-schema")
    found = JsonColumns.of(params.schema_text)
    names = found.schema.names
    if taken := [name for name in names if columns.is_own(name)]:
        raise ConfigError(
            f"--parse-json: the output has columns {', '.join(taken):.200} of its own: give these "
            "other names with --column-prefix, such as --column-prefix vlmbatch_"
        )
    if taken := [name for name in names if name in columns.kept]:
        raise ConfigError(
            f"--parse-json and --keep-inputs both write columns {', '.join(taken):.200}: leave one "
            "of them out, or rename the schema's properties"
        )
    return found


def _field(name: str, schema: Any, root: Any) -> pa.Field:
    kind = _kind(schema, root)
    return pa.field(name, pa.string(), metadata=JSON_TEXT) if kind is None else pa.field(name, kind)


def _kind(schema: Any, root: Any) -> pa.DataType | None:
    """The type of the values that a schema allows but for null; None where it is no simple one."""
    schema = _resolved(schema, root)
    for name in ("anyOf", "oneOf"):
        if isinstance(several := schema.get(name), list):
            return _common(several, lambda each: _kind(each, root))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        return _common(values, lambda value: _SCALARS.get(_type_name(value)))
    names = schema.get("type")
    if names == "array":
        items = _kind(schema.get("items", {}), root)
        return pa.list_(items) if items in _SCALARS.values() else None
    names = names if isinstance(names, list) else [names]
    return _common(names, _SCALARS.get)


def _common(several: list[Any], kind: Callable[[Any], pa.DataType | None]) -> pa.DataType | None:
    kinds = [kind(each) for each in several if each not in (None, "null", {"type": "null"})]
    if set(kinds) == {pa.int64(), pa.float64()}:
        return pa.float64()
    return kinds[0] if kinds and all(each == kinds[0] for each in kinds) else None


def _type_name(value: Any) -> str:
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return names.get(type(value), "")


def _resolved(schema: Any, root: Any) -> Mapping[str, Any]:
    """The schema, or the definition in ``root`` that it refers to."""
    for _ in range(_MAX_REFERENCES):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            break
        place, *path = schema["$ref"].split("/")
        schema = root if place == "#" else {}
        for part in path:
            name = part.replace("~1", "/").replace("~0", "~")
            schema = schema.get(name) if isinstance(schema, dict) else None
    return schema if isinstance(schema, dict) else {}


def _fitting(value: Any, field: pa.Field) -> Any:
    if value is None or field.metadata is not None:
        return value
    if isinstance(field.type, pa.ListType):
        if not isinstance(value, list):
            raise _UnfitError(f"{json.dumps(value):.80} is not a list")
        return [None if each is None else _scalar(each, field.type.value_type) for each in value]
    return _scalar(value, field.type)


def _scalar(value: Any, kind: pa.DataType) -> Any:
    """Raises _UnfitError."""
    found = _SCALARS.get(_type_name(value))
    if isinstance(value, float) and kind == pa.int64() and value.is_integer():
        value, found = int(value), pa.int64()  # 2.0, which JSON schemas call an integer
    if isinstance(value, int) and found == pa.int64():
        if kind == pa.float64() and abs(value) < 2**1000:
            return float(value)
        if not -_MAX_INT64 <= value < _MAX_INT64:
            raise _UnfitError(f"{value!s:.40} does not fit 64 bits")
    if found != kind or (isinstance(value, float) and not math.isfinite(value)):
        raise _UnfitError(f"{json.dumps(value):.80} does not fit a column of {kind}")
    return value
