"""Typed reading of a request's JSON fields; what does not fit is a 400 that names the field."""

from __future__ import annotations

import json
from typing import Any

from vlmbatch.openai.errors import ApiError, bad_request

Json = dict[str, Any]

# OpenAI's limits for what is attached to a request.
_MAX_TAGS = 16
_MAX_TAG_NAME = 64  # characters
_MAX_TAG_VALUE = 512
_MAX_SHOWN = 80


def object_body(body: object) -> Json:
    """The request's body.

    Raises:
        ApiError: 400, not a JSON object.
    """
    if not isinstance(body, dict):
        raise bad_request(f"the body must be a JSON object, got {kind_of(body)}", None)
    return body


def string(body: Json, name: str, where: str = "") -> str | None:
    """A string; None when it is absent or null. Raises ApiError, as all below."""
    value = body.get(name)
    if value is None or isinstance(value, str):
        return value
    raise wrong_type(where + name, "a string", value)


def boolean(body: Json, name: str, where: str = "") -> bool:
    """A boolean; False when it is absent or null."""
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise wrong_type(where + name, "a boolean", value)


def integer(body: Json, name: str, where: str = "") -> int | None:
    """An integer, or a float that is one; None when it is absent or null."""
    value = body.get(name)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise wrong_type(where + name, "an integer", value)


def number(body: Json, name: str) -> float | None:
    """A number; None when it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise wrong_type(name, "a number", value) from error
    raise wrong_type(name, "a number", value)


def json_object(body: Json, name: str, where: str = "") -> Json | None:
    """An object; None when it is absent or null."""
    value = body.get(name)
    if value is None or isinstance(value, dict):
        return value
    raise wrong_type(where + name, "an object", value)


def tags(body: Json, name: str) -> dict[str, str] | None:
    """A few short strings by name; None when they are absent or null."""
    found = json_object(body, name) or {}
    if len(found) > _MAX_TAGS:
        raise bad_request(f"'{name}' has {len(found)} entries, at most {_MAX_TAGS} fit", name)
    for key, value in found.items():
        if not isinstance(value, str):
            raise wrong_type(f"{name}.{key:.{_MAX_TAG_NAME}}", "a string", value)
        if len(key) > _MAX_TAG_NAME or len(value) > _MAX_TAG_VALUE:
            raise bad_request(
                f"an entry of '{name}' has a name of {len(key)} characters and a value of "
                f"{len(value)}, at most {_MAX_TAG_NAME} and {_MAX_TAG_VALUE} fit",
                name,
            )
    return body.get(name)


def wrong_type(param: str, expected: str, value: object) -> ApiError:
    """The 400 for a value of another type."""
    return bad_request(
        f"'{param}' must be {expected}, got {kind_of(value)}", param, code="invalid_type"
    )


def missing(param: str) -> ApiError:
    """The 400 for a field that must be there."""
    return bad_request(f"'{param}' is missing", param, code="missing_required_parameter")


def kind_of(value: object) -> str:
    """A JSON value for messages."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    return as_json(value)


def as_json(value: object) -> str:
    """A value as the client has written it, cut where it is long."""
    text = ""
    try:
        # Piece by piece, in Python: a large value is not written out to be cut.
        for piece in json.JSONEncoder(ensure_ascii=False).iterencode(value):
            text += piece[: _MAX_SHOWN + 1]
            if len(text) > _MAX_SHOWN:
                return f"{text[: _MAX_SHOWN - 1]}…"
    except ValueError:  # an integer of thousands of digits
        return "a number"
    return text
