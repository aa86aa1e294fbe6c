"""``response_format`` and ``structured_outputs``: the shape that a request asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vlmbatch.config import SamplingParams
from vlmbatch.config.grammar import ANY_OBJECT
from vlmbatch.openai.errors import ApiError
from vlmbatch.openai.requests import parse_chat_request, parse_completion_request

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
MESSAGES = [{"role": "user", "content": "Hi"}]
SHAPED = SamplingParams(regex="a+")


def schema_format(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", **fields}}


def sampling(defaults: SamplingParams = SHAPED, **fields: Any) -> SamplingParams:
    chat = parse_chat_request({"messages": MESSAGES, **fields}, defaults).sampling
    assert parse_completion_request({"prompt": "Hi", **fields}, defaults).sampling == chat
    return chat


@pytest.mark.parametrize(
    ("fields", "json_schema", "regex"),
    [
        ({}, None, "a+"),
        ({"response_format": None}, None, "a+"),
        ({"response_format": {"type": "text"}}, None, None),
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT, None),
        ({"response_format": schema_format(schema=SCHEMA, strict=True)}, SCHEMA, None),
        ({"response_format": schema_format(description="d")}, ANY_OBJECT, None),
        ({"structured_outputs": {"json": SCHEMA}}, SCHEMA, None),
        ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, SCHEMA, None),
        ({"structured_outputs": {"regex": "b"}}, None, "b"),
    ],
)
def test_the_requests_own_shape_replaces_the_runs(
    fields: dict[str, Any], json_schema: Any, regex: str | None
) -> None:
    found = sampling(**fields)
    if isinstance(json_schema, dict):
        json_schema = json.dumps(json_schema)
    assert (found.json_schema, found.regex) == (json_schema, regex)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": "json"}, "response_format", "must be an object"),
        ({"response_format": {}}, "response_format.type", 'one of "text", "json_object"'),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            "response_format.json_schema.name",
            "missing",
        ),
        (
            {"response_format": schema_format(schema=[])},
            "response_format.json_schema.schema",
            "must be an object, got an array",
        ),
        (
            {"response_format": schema_format(strict="yes")},
            "response_format.json_schema.strict",
            "must be a boolean",
        ),
        ({"response_format": schema_format(shema={})}, "response_format.json_schema", "'shema'"),
        (
            {"response_format": schema_format(schema={"type": "strin"})},
            "response_format",
            "json_schema cannot be used: Invalid type: strin",
        ),
        (
            {"response_format": {"type": "json_object"}, "ignore_eos": True},
            "response_format",
            "ignore_eos cannot be combined with json_schema",
        ),
        ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs", '"json" or "regex"'),
        ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex", "must be a string"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs", "unclosed group"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}},
            "structured_outputs",
            "cannot be combined with 'response_format'",
        ),
    ],
)
def test_refused(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        sampling(SamplingParams(), **fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert message in caught.value.message


def test_a_runs_shape_ends_with_the_end_of_sequence() -> None:
    with pytest.raises(ApiError) as caught:
        sampling(ignore_eos=True)
    assert caught.value.param == "ignore_eos"
