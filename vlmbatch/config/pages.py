"""Which pages of documents are read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vlmbatch.errors import ConfigError

_RANGE = re.compile(r"([0-9]{1,9})(?:(-)([0-9]{1,9})?)?")


class PageRanges:
    """Pages from 1 on, as in ``1-20``, ``3`` or ``1,5-7,10-``.

    Raises:
        ConfigError: another text, a page 0, or a range that ends before it begins.
    """

    def __init__(self, text: str) -> None:
        self._ranges: list[tuple[int, int | None]] = []
        for part in text.split(","):
            found = _RANGE.fullmatch(part.strip())
            if found is None:
                raise ConfigError(f"--pages {text:.80}: give pages as in 1-20, 3 or 1,5-7,10-")
            first = int(found[1])
            last = first if found[2] is None else None if found[3] is None else int(found[3])
            if first < 1:
                raise ConfigError(f"--pages {text:.80}: pages are numbered from 1, got {first}")
            if last is not None and last < first:
                raise ConfigError(f"--pages {text:.80}: {part.strip()} ends before it begins")
            self._ranges.append((first, last))

    def of(self, num_pages: int) -> Iterator[int]:
        """Those of a document of so many pages, in order, each once."""
        last_given = 0
        for first, last in sorted(self._ranges, key=lambda each: each[0]):
            end = num_pages if last is None else min(last, num_pages)
            yield from range(max(first, last_given + 1), end + 1)
            last_given = max(last_given, end)
