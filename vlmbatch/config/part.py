"""One part of a manifest, and the names that parts go by."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vlmbatch.errors import ConfigError

MAX_PARTS = 99_999  # as many digits as their numbers have in names

_WRITTEN = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
_FILE_NAME = re.compile(r"part-([0-9]{5})-of-([0-9]{5})\.parquet")


@dataclass(frozen=True, slots=True)
class Part:
    """Part ``number`` of ``count``, numbered from 0.

    Raises:
        ConfigError: there is no such part.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_PARTS:
            raise ConfigError(f"a run has from 1 to {MAX_PARTS} parts, got {self}")
        if not 0 <= self.number < self.count:
            raise ConfigError(
                f"parts are numbered from 0: of {self.count} they are 0/{self.count} to "
                f"{self.count - 1}/{self.count}, got {self}"
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def file_name(self) -> str:
        """The part's answers, by a name that sorts in the manifest's order."""
        return f"part-{self.number:05}-of-{self.count:05}.parquet"


def parse_part(text: str) -> Part:
    """The part of "3/16".

    Raises:
        ConfigError: no such text, or no such part.
    """
    found = _WRITTEN.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f'must be I/N, such as 0/16 to 15/16 for 16 parts, or auto in a job array, got "{text}"'
        )
    return Part(int(found[1]), int(found[2]))


def part_of_name(name: str) -> Part | None:
    """Which part a file holds, by its name alone; None for other files."""
    found = _FILE_NAME.fullmatch(name)
    if found is None or int(found[1]) >= int(found[2]):
        return None
    return Part(int(found[1]), int(found[2]))
