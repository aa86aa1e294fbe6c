"""Arguments as Python callers write them, to the values of the configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar, get_args

from vlmbatch.config import parse_image_shape
from vlmbatch.errors import ConfigError

T = TypeVar("T")


def choice(name: str, value: T, kind: object) -> T:
    """``value``, if the Literal ``kind`` has it."""
    if value not in get_args(kind):
        raise ConfigError(f"{name} is one of {', '.join(get_args(kind))}; got {value!r}")
    return value


def path_text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def image_shape(given: str | Sequence[int] | None) -> tuple[int, int, int, int] | None:
    if given is None:
        return None
    return parse_image_shape(given if isinstance(given, str) else ",".join(map(str, given)))
