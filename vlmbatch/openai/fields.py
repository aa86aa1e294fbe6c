"""Typed reading of a request's JSON fields; what does not fit is a 400 that names the field."""

from __future__ import annotations

from typing import Any

from vlmbatch.openai.errors import ApiError, bad_request

Json = dict[str, Any]


def object_body(body: object) -> Json:
    """The request's body.

    Raises:
        ApiError: 400, not a JSON object.
    """
    if not isinstance(body, dict):
        raise bad_request(f"the body must be a JSON object, got {kind_of(body)}", None)
    return body


def string(body: Json, name: str) -> str | None:
    """A string; None when it is absent or null. Raises ApiError, as all below."""
    value = body.get(name)
    if value is None or isinstance(value, str):
        return value
    raise wrong_type(name, "a string", value)


def boolean(body: Json, name: str, where: str = "") -> bool:
    """A boolean; False when it is absent or null."""
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise wrong_type(where + name, "a boolean", value)


def integer(body: Json, name: str) -> int | None:
    """An integer, or a float that is one; None when it is absent or null."""
    value = body.get(name)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise wrong_type(name, "an integer", value)


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
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number"
    return text if len(text) <= 80 else f"{text[:79]}…"
