"""Arguments as Python callers write them, to the values of the configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, get_args

from vlmbatch import typed
from vlmbatch.config import parse_image_shape
from vlmbatch.errors import ConfigError

T = TypeVar("T")


def choice(name: str, value: T, kind: object) -> T:
    """``value``, if the Literal ``kind`` has it."""
    if not isinstance(value, str) or value not in get_args(kind):
        raise ConfigError(f"{name} is one of {', '.join(get_args(kind))}; got {typed.shown(value)}")
    return value


def optional(read: Callable[..., T], name: str, value: object, **limits: int) -> T | None:
    """``value`` as ``read`` takes it, or None."""
    return None if value is None else read(name, value, **limits)


def path_text(name: str, value: object) -> str:
    """A path as text.

    Raises:
        ConfigError: it is none that a file can have.
    """
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(found, str) or not found or "\0" in found:
        raise typed.refusal(name, "a path", value)
    return found


def path(name: str, value: object) -> Path:
    """As ``path_text``."""
    return Path(path_text(name, value))


def image_shape(name: str, given: object) -> tuple[int, int, int, int]:
    """``(1, channels, height, width)``, of four numbers or a text with them.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(given, str):
        return parse_image_shape(given)
    numbers = typed.several(name, given, "a string or four integers")
    return parse_image_shape(",".join(str(typed.integer(name, number)) for number in numbers))
