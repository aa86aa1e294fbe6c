"""Values that people write with a unit, and how they are shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from vlmbatch.config.grammar import read_schema_file
from vlmbatch.errors import ConfigError

UnitName = Literal["time", "size", "share", "shape", "gpus", "schema"]

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_SIZE = 2**63  # bytes, what the system's own sizes end at
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(I?))?B?")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)([smhd]))+")


@dataclass(frozen=True, slots=True)
class Unit:
    """``parse``: text to a value, or ``ConfigError``. ``show``: a value as text.

    ``in_files``: what a configuration file may hold beside such text, in words and as types.
    """

    parse: Callable[[str], Any]
    show: Callable[[Any], str]
    in_files: str
    file_kinds: tuple[type, ...]


def parse_duration(text: str) -> float:
    """Seconds of "90", "90s", "15m", "1h30m" or "2d".

    Raises:
        ConfigError: no such text.
    """
    compact = text.strip().lower()
    if re.fullmatch(r"\d+(?:\.\d+)?", compact):
        return float(compact)
    if not _DURATION.fullmatch(compact):
        raise ConfigError(f'must be a time such as 90, 45s, 15m, 2h or 1h30m, got "{text}"')
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", compact)
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def show_duration(seconds: float) -> str:
    """Such as "20s" or "10m": the largest unit that divides it."""
    unit = next(unit for unit in "dhms" if seconds % _SECONDS[unit] == 0 or unit == "s")
    number = seconds / _SECONDS[unit]
    return f"{int(number) if number.is_integer() else number}{unit}"


def parse_size(text: str) -> int:
    """Bytes of "4GiB", "4G", "512MB" or "1073741824"; KB, MB, GB and TB are powers of 1000.

    Raises:
        ConfigError: no such text.
    """
    compact = text.strip().upper()
    found = _SIZE.fullmatch(compact)
    if found is None:
        raise ConfigError(f'must be a size such as 4GiB or 512MiB, got "{text}"')
    decimal = found[2] and not found[3] and compact.endswith("B")
    num_bytes = float(found[1]) * (1000 if decimal else 1024) ** _POWERS[found[2] or ""]
    if num_bytes >= _MAX_SIZE:
        raise ConfigError(f'must be a size below 8388608TiB, got "{text}"')
    return int(num_bytes)


def show_size(num_bytes: int) -> str:
    """Such as "32MiB": the largest unit that divides it."""
    powers = [name for name in "TGMK" if num_bytes and num_bytes % 1024 ** _POWERS[name] == 0]
    return f"{num_bytes // 1024 ** _POWERS[powers[0]]}{powers[0]}iB" if powers else str(num_bytes)


def parse_share(text: str) -> float:
    """A share of "5%" or "0.05".

    Raises:
        ConfigError: not a number, or not from 0 to 1.
    """
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f'must be a share such as 5% or 0.05, got "{text}"')
    return value


def show_share(share: float) -> str:
    """Such as "5%"."""
    return f"{100 * share:g}%"


def parse_image_shape(text: str) -> tuple[int, int, int, int]:
    """``image_input_shape`` as people write it: "1,3,336,336".

    Raises:
        ConfigError: not four numbers above 0, the first of them 1.
    """
    try:
        batch, channels, height, width = (int(part) for part in text.split(","))
    except ValueError:
        batch = channels = height = width = 0
    if batch != 1 or min(channels, height, width) < 1:
        raise ConfigError(f'must be "1,channels,height,width", such as "1,3,336,336", got "{text}"')
    return batch, channels, height, width


def show_image_shape(shape: tuple[int, ...]) -> str:
    """Such as "1,3,336,336"."""
    return ",".join(map(str, shape))


def parse_gpus(text: str) -> str:
    """GPUs as people write them: "all", a number of them, or "0,2,3"; without blanks.

    Raises:
        ConfigError: no such text, or a GPU that is named twice.
    """
    parts = [part.strip().lower() for part in text.split(",")]
    if parts == ["all"]:
        return "all"
    written_so = all(part.isascii() and part.isdigit() for part in parts)
    if not written_so or (len(parts) == 1 and int(parts[0]) == 0):
        raise ConfigError(f'must be all, a number of GPUs, or a list such as 0,2,3, got "{text}"')
    numbers = [int(part) for part in parts]
    for index, number in enumerate(numbers):
        if number in numbers[:index]:
            raise ConfigError(f'must name each GPU once, got "{text}"')
    return ",".join(map(str, numbers))


UNITS: dict[UnitName, Unit] = {
    "time": Unit(
        parse_duration, show_duration, 'a number of seconds, or a string such as "2h"', (int, float)
    ),
    "size": Unit(parse_size, show_size, 'a number of bytes, or a string such as "4GiB"', (int,)),
    "share": Unit(
        parse_share, show_share, 'a number from 0 to 1, or a string such as "5%"', (int, float)
    ),
    "shape": Unit(
        parse_image_shape,
        show_image_shape,
        'an array of integers, or a string such as "1,3,336,336"',
        (list,),
    ),
    "gpus": Unit(parse_gpus, str, 'a number of GPUs, or a string such as "all" or "0,2,3"', (int,)),
    "schema": Unit(read_schema_file, str, "the name of a file with a JSON schema, or its text", ()),
}
