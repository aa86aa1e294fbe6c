"""Values of Python callers, of whom nothing is known: of the type that is needed, or refused."""

from __future__ import annotations

import json
import numbers
import operator
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlmbatch.errors import ConfigError, FieldError


def integer(name: str, value: object, at_least: int | None = None) -> int:
    """``value`` as an int; numpy's integers count, booleans do not.

    Raises:
        ConfigError: it is no integer, or less than ``at_least``.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise refusal(name, "an integer", value)
    try:
        number = operator.index(value)
    except TypeError as error:  # an array of several
        raise refusal(name, "an integer", value) from error
    if at_least is not None and number < at_least:
        raise FieldError(name, f"must be at least {at_least}, got {number}")
    return number


def number(name: str, value: object) -> float:
    """``value`` as a float; integers and numpy's numbers count, booleans do not.

    Raises:
        ConfigError: it is no number, or too large for a float.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise refusal(name, "a number", value)
    try:
        return float(value)
    except OverflowError as error:
        raise refusal(name, "a number", value) from error


def boolean(name: str, value: object) -> bool:
    """``value``, if it is True or False.

    Raises:
        ConfigError: it is anything else, which might have been meant as either.
    """
    if not isinstance(value, bool):
        raise refusal(name, "True or False", value)
    return value


def text(name: str, value: object) -> str:
    """``value``, if it is a string.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, str):
        raise refusal(name, "a string", value)
    return value


def name_or_path(name: str, value: object) -> str:
    """``value`` as text: what names a file, a folder or something on the Hub, or is plain text.

    Raises:
        ConfigError: it is neither a string nor a path.
    """
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(found, str):
        raise refusal(name, "a string", value)
    return found


def path(name: str, value: object) -> Path:
    """``value`` as a path.

    Raises:
        ConfigError: it is none that a file can have.
    """
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(found, str) or not found or "\0" in found:
        raise refusal(name, "a path", value)
    return Path(found)


def several(name: str, value: object, expected: str) -> tuple[Any, ...]:
    """The items of ``value``.

    Raises:
        ConfigError: it has none, because it is a text or a number; ``expected`` says what it is.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise refusal(name, expected, value)
    try:
        return tuple(value)
    except TypeError as error:  # an array without an axis, which passes for iterable
        raise refusal(name, expected, value) from error


def divided(value: str) -> tuple[str, ...]:
    """The texts that one text lists: as a JSON array, else between commas, without blanks around.

    Raises:
        ConfigError: it looks like an array and is none of texts.
    """
    if re.match(r"\s*\[(\s*[\"\]]|[^\[\]]*,[^\[\]]*\]\s*$)", value) is None:
        return tuple(text.strip() for text in value.split(","))
    try:
        items = json.loads(value)
    except ValueError as error:
        raise ConfigError(f'{value!r:.80} is no JSON array such as ["a", "b"]: {error}') from error
    return tuple(text(f"item {number} of the list", item) for number, item in enumerate(items))


def refusal(name: str, expected: str, value: object) -> FieldError:
    """The error of a value that is not what is expected."""
    return FieldError(name, f"must be {expected}, got {shown(value)}")


def shown(value: object) -> str:
    """A value of any type, for messages."""
    try:
        return f"{value!r:.80} ({type(value).__name__})"
    except Exception:  # noqa: BLE001  whatever the caller's own __repr__ raises
        return f"a {type(value).__name__}"
