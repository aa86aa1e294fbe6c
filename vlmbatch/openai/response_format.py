"""What shape a request asks its answer to have."""

from __future__ import annotations

from typing import Any

from vlmbatch.config.grammar import ANY_OBJECT
from vlmbatch.openai.errors import bad_request
from vlmbatch.openai.fields import Json, as_json, boolean, json_object, missing, string, wrong_type

# OpenAI's, and the one of vLLM's servers.
SHAPE_FIELDS = ("response_format", "structured_outputs")

_TYPES = ("text", "json_object", "json_schema")
_SCHEMA_FIELDS = ("name", "schema", "strict", "description")
_NO_SHAPE: dict[str, Any] = {"choices": (), "json_schema": None, "regex": None}


def read_shape(body: Json) -> tuple[str, dict[str, Any]]:
    """The field that asks for a shape, and the sampling parameters that it sets: none, or all
    that there are of shapes, as the request's own replaces any other.

    ``json_schema.strict`` makes no difference: every schema is followed.

    Raises:
        ApiError: 400; ``param`` names the field.
    """
    given = [name for name in SHAPE_FIELDS if body.get(name) is not None]
    if len(given) > 1:
        raise bad_request(f"'{given[1]}' cannot be combined with '{given[0]}'", given[1])
    if not given:
        return "", {}
    read = _response_format if given[0] == "response_format" else _structured_outputs
    return given[0], _NO_SHAPE | read(body)


def _response_format(body: Json) -> dict[str, Any]:
    wanted = json_object(body, "response_format") or {}
    kind = wanted.get("type")
    if kind not in _TYPES:
        known = ", ".join(map(as_json, _TYPES))
        raise bad_request(
            f"'response_format.type' must be one of {known}, got {as_json(kind)}",
            "response_format.type",
        )
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": ANY_OBJECT}
    where = "response_format.json_schema"
    described = wanted.get("json_schema")
    if described is None:
        raise missing(where)
    if not isinstance(described, dict):
        raise wrong_type(where, "an object", described)
    if unknown := [name for name in described if name not in _SCHEMA_FIELDS]:
        raise bad_request(
            f"'{where}' has the field {unknown[0]!r:.80}, which is not known",
            where,
            "unknown_parameter",
        )
    for name in ("name", "description"):
        string(described, name, f"{where}.")
    if described.get("name") is None:
        raise missing(f"{where}.name")
    boolean(described, "strict", f"{where}.")
    schema = json_object(described, "schema", f"{where}.")
    return {"json_schema": ANY_OBJECT if schema is None else schema}


def _structured_outputs(body: Json) -> dict[str, Any]:
    wanted = json_object(body, "structured_outputs") or {}
    given = {name: value for name, value in wanted.items() if value is not None}
    if len(given) != 1 or not {"json", "regex"}.issuperset(given):
        raise bad_request(
            '\'structured_outputs\' must have one field, "json" or "regex", '
            f"got {as_json(sorted(given))}",
            "structured_outputs",
        )
    if "regex" in given:
        return {"regex": string(given, "regex", "structured_outputs.")}
    if not isinstance(given["json"], str | dict):
        raise wrong_type("structured_outputs.json", "an object or a string", given["json"])
    return {"json_schema": given["json"]}
