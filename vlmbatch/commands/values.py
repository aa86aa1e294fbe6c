"""Values of options that people write with a unit."""

from __future__ import annotations

import re

import typer

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(I?))?B?")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)([smhd]))+")


def parse_duration(text: str | None) -> float | None:
    """Seconds of "90", "90s", "15m", "1h30m" or "2d".

    Raises:
        typer.BadParameter: no such text.
    """
    if text is None:
        return None
    compact = text.strip().lower()
    if re.fullmatch(r"\d+(?:\.\d+)?", compact):
        return float(compact)
    if not _DURATION.fullmatch(compact):
        raise typer.BadParameter(f'must be a time such as 90, 45s, 15m, 2h or 1h30m, got "{text}"')
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", compact)
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def parse_size(text: str | None) -> int | None:
    """Bytes of "4GiB", "4G", "512MB" or "1073741824"; KB, MB, GB and TB are powers of 1000.

    Raises:
        typer.BadParameter: no such text.
    """
    if text is None:
        return None
    compact = text.strip().upper()
    found = _SIZE.fullmatch(compact)
    if found is None:
        raise typer.BadParameter(f'must be a size such as 4GiB or 512MiB, got "{text}"')
    decimal = found[2] and not found[3] and compact.endswith("B")
    return int(float(found[1]) * (1000 if decimal else 1024) ** _POWERS[found[2] or ""])


def parse_share(text: str | None) -> float | None:
    """A share of "5%" or "0.05".

    Raises:
        typer.BadParameter: not a number, or not from 0 to 1.
    """
    if text is None:
        return None
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise typer.BadParameter(f'must be a share such as 5% or 0.05, got "{text}"')
    return value
