"""Values of options that people write with a unit."""

from __future__ import annotations

import re

import typer

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
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
