"""Columns of an answer's fields: types by the schema, values that fit, and why others do not."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.errors import ConfigError
from vlmbatch.manifest.json_columns import JsonColumns
from vlmbatch.manifest.schema import is_json_text
from vlmbatch.types import Result

DEFINITIONS = {
    "$defs": {
        "Colour": {"enum": ["red", "green"], "type": "string"},
        "again": {"$ref": "#/$defs/Colour"},
        "a/b": {"type": "integer"},
        "loop": {"$ref": "#/$defs/loop"},
    }
}


def columns(**properties: Any) -> JsonColumns:
    return JsonColumns.of(json.dumps({"properties": properties, **DEFINITIONS}))


def result(text: str | None, finish_reason: Any = "stop") -> Result:
    return Result(0, "0", text, finish_reason, completion_tokens=7)


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string"}, pa.string()),
        ({"type": "integer"}, pa.int64()),
        ({"type": "number"}, pa.float64()),
        ({"type": "boolean"}, pa.bool_()),
        ({"type": ["integer", "null"]}, pa.int64()),
        ({"type": ["integer", "number"]}, pa.float64()),
        ({"enum": ["a", "b", None]}, pa.string()),
        ({"enum": [1, 2.5]}, pa.float64()),
        ({"const": True}, pa.bool_()),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, pa.string()),
        ({"$ref": "#/$defs/again"}, pa.string()),
        ({"$ref": "#/$defs/a~1b"}, pa.int64()),
        ({"type": "array", "items": {"$ref": "#/$defs/Colour"}}, pa.list_(pa.string())),
        ({"type": "array", "items": {"type": "boolean"}}, pa.list_(pa.bool_())),
        ({"type": "object"}, None),
        ({"type": ["string", "integer"]}, None),
        ({"enum": ["a", 1]}, None),
        ({"type": "array"}, None),
        ({"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, None),
        ({"oneOf": [{"type": "string"}, {"type": "object"}]}, None),
        ({"$ref": "#/$defs/loop"}, None),
        ({"$ref": "#/$defs/none"}, None),
        (True, None),
        ({}, None),
    ],
)
def test_types(schema: Any, kind: pa.DataType | None) -> None:
    field = columns(a=schema).schema.field("a")
    assert field.type == (pa.string() if kind is None else kind)
    assert is_json_text(field) == (kind is None)


@pytest.mark.parametrize("schema", ["{}", '{"properties": {}}', '{"properties": []}'])
def test_a_schema_without_properties_is_refused(schema: str) -> None:
    with pytest.raises(ConfigError, match="at its top level --json-schema has none"):
        JsonColumns.of(schema)


def test_properties_behind_a_reference() -> None:
    schema = {"$ref": "#/$defs/it", "$defs": {"it": {"properties": {"a": {"type": "string"}}}}}
    assert JsonColumns.of(json.dumps(schema)).schema.names == ["a"]


ALL = columns(
    text={"type": "string"},
    count={"type": "integer"},
    share={"type": "number"},
    many={"type": "array", "items": {"type": "integer"}},
    other={},
)


@pytest.mark.parametrize(
    ("answer", "values", "error"),
    [
        ({"text": "a", "count": 2, "share": 1, "many": [1, None], "other": {"b": []}}, ..., None),
        ({"count": 2.0, "share": 1e-9}, ..., None),
        ({"text": None, "unknown": 3}, {}, None),
        ({"count": 2**63, "text": "kept"}, {"text": "kept"}, "count: 9223372036854775808 does not"),
        ({"count": 2.5}, {}, "count: 2.5 does not fit a column of int64"),
        ({"count": True}, {}, "count: true does not fit a column of int64"),
        ({"share": float("inf")}, {}, "share: Infinity does not fit a column of double"),
        ({"share": 10**400}, {}, "share: 1000"),
        ({"many": 3}, {}, "many: 3 is not a list"),
        ({"many": [1, "x"], "text": 4}, {}, 'text: 4 does not fit a column of string; many: "x"'),
        ([1], {}, "not a JSON object, but list"),
    ],
)
def test_values(answer: Any, values: Any, error: str | None) -> None:
    found, problem = ALL.values(result(json.dumps(answer)))
    expected = dict.fromkeys(ALL.schema.names) | (answer if values is ... else values)
    assert found == expected
    assert problem is error is None or (problem or "").startswith(error or "nothing")


@pytest.mark.parametrize(
    ("text", "reason", "error"),
    [
        (None, None, None),
        ('{"text": "a', "length", "cut after 7 tokens: Unterminated string"),
        ("hello", "stop", "not JSON: Expecting value"),
        ("[" * 100_000, "stop", "not JSON: "),
        ('{"text": "whole"}', "length", None),
        ('{"count": %s}' % ("9" * 5000), "stop", "not JSON: Exceeds the limit"),
    ],
)
def test_answers_that_are_no_objects(text: str | None, reason: Any, error: str | None) -> None:
    found, problem = ALL.values(result(text, reason))
    assert found["text"] == ("whole" if text is not None and "whole" in text else None)
    assert {found[name] for name in ("count", "share", "many", "other")} == {None}
    assert problem is error is None or (problem or "").startswith(error or "nothing")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(ALL.schema.names, JSON)))
def test_any_answer_fits_its_columns(answer: dict[str, Any]) -> None:
    """As it is, or null with a reason."""
    values, error = ALL.values(result(json.dumps(answer)))
    for field in ALL.schema:
        if is_json_text(field):
            continue
        assert pa.array([values[field.name]], field.type).to_pylist() == [values[field.name]]
        is_kept = values[field.name] == answer.get(field.name)
        assert is_kept or (values[field.name] is None and f"{field.name}: " in (error or ""))
