"""Names of many files in one, as a shell writes them: ``train-{000..099}.tar``, ``{a,b}.csv``."""

from __future__ import annotations

import re

from vlmbatch.errors import ManifestError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")
_MAX_FILES = 100_000


def is_brace_pattern(source: str) -> bool:
    """Whether a path that does not exist stands for several."""
    return any("," in each or _RANGE.fullmatch(each) for each in _BRACES.findall(source))


def expand_braces(source: str) -> list[str]:
    """The paths, in the order of the pattern. Numbers have as many digits as the first is written
    with.

    Raises:
        ManifestError: more than 100,000, or a range that ends before it begins.
    """
    found = next(
        (each for each in _BRACES.finditer(source) if is_brace_pattern(each[0])),
        None,
    )
    if found is None:
        return [source]
    if (bounds := _RANGE.fullmatch(found[1])) is None:
        middles = found[1].split(",")
    else:
        first, last = int(bounds[1]), int(bounds[2])
        if not 0 <= last - first < _MAX_FILES:
            raise ManifestError(
                f"{source}: {found[0]} stands for {last - first + 1} files: 1 to {_MAX_FILES} are "
                "possible"
            )
        middles = [f"{number:0{len(bounds[1])}}" for number in range(first, last + 1)]
    before, behind = source[: found.start()], source[found.end() :]
    rests = expand_braces(behind)
    if len(middles) * len(rests) > _MAX_FILES:
        raise ManifestError(
            f"{source} stands for {len(middles) * len(rests)} files: {_MAX_FILES} are possible"
        )
    return [f"{before}{middle}{rest}" for middle in middles for rest in rests]
