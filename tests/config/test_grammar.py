"""Shapes of answers as they are given: read, checked without a tokenizer, refused by name."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from anything import ANYTHING
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.config import SamplingParams
from vlmbatch.config.grammar import grammar_problem, read_schema_file
from vlmbatch.errors import ConfigError


def definitions(count: int, wrapped: Any) -> dict[str, Any]:
    """A schema of so many definitions, each of which leads to the next."""
    found = {f"d{n}": wrapped({"$ref": f"#/$defs/d{n + 1}"}) for n in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**found, f"d{count}": {"type": "string"}}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def in_an_object(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"p": {"type": "object", "properties": {"q": schema}}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [f"choice number {n * 7919}" for n in range(10_000)]},
        definitions(3_000, lambda schema: schema),  # ends a process by its usual stack
        definitions(1_000, in_an_object),  # the same
        definitions(20, lambda schema: {"allOf": [schema, schema]}),
        {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}, "type": "array"}}},
        {"type": "object", "properties": {"é": {"type": "string", "format": "date-time"}}},
    ],
)
def test_large_and_recursive_schemas(schema: dict[str, Any]) -> None:
    assert SamplingParams(json_schema=schema).json_schema == json.dumps(schema)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"json_schema": 3}, "json_schema must be a JSON schema, an object; got 3"),
        ({"json_schema": "3"}, "json_schema must be a JSON schema, an object; got 3"),
        ({"json_schema": "{"}, "json_schema is not JSON"),
        ({"json_schema": "[" * 100_000}, "json_schema is not JSON"),
        ({"json_schema": {"a": float("nan")}}, "json_schema is no JSON schema"),
        ({"json_schema": {"a": {1}}}, "json_schema is no JSON schema"),
        ({"json_schema": {"const": "\ud800"}}, "json_schema cannot be used: "),
        ({"json_schema": {"type": "strin"}}, "json_schema cannot be used: Invalid type: strin"),
        ({"json_schema": {"uniqueItems": True}}, "Unimplemented keys"),
        ({"json_schema": {"$ref": "http://example.com/s"}}, "is not present in a registry"),
        ({"json_schema": {"type": "string", "minLength": 3, "maxLength": 2}}, "Unsatisfiable"),
        ({"json_schema": nested(200)}, "recursion limit exceeded"),
        (
            {"json_schema": {"properties": {f"p{n}": {"type": "string"} for n in range(20_000)}}},
            "json_schema cannot be used: schema too large",
        ),
        ({"json_schema": {"enum": ["x" * 2**20]}}, "at most 1048576 can be compiled"),
        ({"json_schema": " " * 2**21}, "has 2097152 characters, at most 1048576"),
        ({"regex": 3}, "regex must be a string"),
        ({"regex": "\ud800"}, "regex must be Unicode text"),
        ({"regex": "a" * (2**20 + 1)}, "regex has 1048577 bytes, at most 1048576"),
        ({"regex": "a?" * 200_000}, "regex cannot be used: initial lexer configuration"),
        ({"regex": "a("}, "regex cannot be used: unclosed group"),
        ({"regex": "a\\\\\\"}, "regex cannot be used: it ends with a backslash"),
        ({"regex": "(" * 300 + ")" * 300}, "regex cannot be used: exceed the maximum number"),
        ({"regex": "a", "json_schema": {}}, "json_schema and regex cannot be combined"),
        ({"regex": "a", "choices": ["a", "b"]}, "choices and regex cannot be combined"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos cannot be combined with regex"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_no_answer_could_follow_is_refused(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**shape)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(
    ANYTHING
    | st.text()
    | st.dictionaries(
        st.sampled_from(["type", "properties", "items", "enum", "anyOf", "$ref", "pattern"]),
        st.recursive(
            st.sampled_from(["string", "#", "object", "[a-z]+"]) | st.integers() | st.booleans(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
    )
)
def test_any_shape_is_kept_or_refused_by_name(value: Any) -> None:
    for name in ("json_schema", "regex"):
        try:
            params = SamplingParams(**{name: value})
        except ConfigError as error:
            assert str(error).startswith(name)
        else:
            kept = getattr(params, name)
            assert kept is None if value is None else isinstance(kept, str)
            assert (params.grammar is None) == (value is None)


def test_an_option_is_a_file_or_the_schema_itself(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('\ufeff{"type": "object"}')
    assert read_schema_file(str(path)) == '{"type": "object"}'
    assert read_schema_file(' {"a": 1}') == ' {"a": 1}'
    path.write_bytes(b"\xff")
    for name in (str(path), str(tmp_path), str(tmp_path / "none"), "a\0b", ""):
        with pytest.raises(ConfigError, match="must be a file with a JSON schema"):
            read_schema_file(name)


def test_what_rows_have_in_common_is_compiled_once() -> None:
    before = grammar_problem.cache_info()
    for number in range(5):
        SamplingParams(regex="once upon a time", seed=number)
    after = grammar_problem.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 4)


def test_a_forked_process_compiles_on_a_thread_of_its_own() -> None:
    SamplingParams(regex="of the parent")
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        SamplingParams(regex="of the child")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
