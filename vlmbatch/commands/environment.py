"""Variables of the environment that were meant to set an option, and set none."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator

PREFIX = "VLMBATCH_"

_ALIKE = 0.85  # variables of other programs have names less like an option's


def misspelt_variables(names: Iterable[str], options: Collection[str]) -> Iterator[tuple[str, str]]:
    """Of the variables ``names``, those spelt nearly as that of an option, and how it is spelt."""
    variables = [PREFIX + option.upper() for option in options]
    for name in sorted(names):
        if name.startswith(PREFIX) and name not in variables:
            stem = name.removeprefix(PREFIX).lower()
            if close := difflib.get_close_matches(stem, options, n=1, cutoff=_ALIKE):
                yield name, PREFIX + close[0].upper()
