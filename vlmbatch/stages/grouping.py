"""Rows that show the same image, one after another, wherever they stand in the manifest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vlmbatch.durable.spill import Spill
from vlmbatch.images.held_images import HeldImages
from vlmbatch.types import ImageRef, Row

# Rows that may be read before the first is handed out: less than a second. After that, so many for
# each row handed out, some milliseconds: a long manifest is read while its rows are worked on.
_FIRST_ROWS = 20_000
_ROWS_A_ROW = 256

# The ticket of a row that waits without its embedded images, and these.
_Waiting = tuple[Row | bytes | int, tuple[ImageRef, ...]]


class RowGroups:
    """Rows read ahead. They leave in the order of the manifest, but a row takes with it all that
    are here and show its image.

    ``last_uses``: as of ``ImageUses``, shape (N,). Embedded images stay in memory, where rows may
    share them; ``max_encoded_bytes`` of them make it full. Not thread-safe.

    Raises:
        OutputError: by ``add`` and ``pop``, when the file system refuses what spills.
    """

    def __init__(
        self, last_uses: NDArray[np.int64], spill: Spill[Row], max_encoded_bytes: int
    ) -> None:
        self._last_uses = last_uses
        self._spill = spill
        self._max_encoded_bytes = max_encoded_bytes
        self._held = HeldImages()
        self._num_read = 0
        # Spill tickets by group; a group's key is the index of its last row.
        # ``_names``: the keys in order of arrival.
        self._groups: dict[int, list[_Waiting]] = {}
        self._names: deque[int] = deque()
        self._leaving: list[_Waiting] = []  # the group under way, its first row last
        self._num_rows = 0

    def __len__(self) -> int:
        """How many rows wait."""
        return self._num_rows

    @property
    def is_whole(self) -> bool:
        """Whether there is a row to hand out, and none with its image is still to be read."""
        return bool(self._leaving or (self._names and self._names[0] < self._num_read))

    @property
    def is_full(self) -> bool:
        return self._held.num_bytes >= self._max_encoded_bytes

    def add(self, row: Row) -> None:
        """Take the next row of the manifest."""
        name = int(self._last_uses[row.index])
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = []
            self._names.append(name)
        embedded = row.images if any(image.data is not None for image in row.images) else ()
        self._held.add(embedded)
        group.append((self._spill.put(replace(row, images=()) if embedded else row), embedded))
        self._num_read = row.index + 1
        self._num_rows += 1

    def pop(self) -> Row:
        """The next row to work on; the rest of its group comes with the next calls."""
        if not self._leaving:
            self._leaving = self._groups.pop(self._names.popleft())
            self._leaving.reverse()
        ticket, embedded = self._leaving.pop()
        row = self._spill.take(ticket)
        self._held.remove(embedded)
        self._num_rows -= 1
        return replace(row, images=embedded) if embedded else row


def in_groups(
    rows: Iterator[Row], groups: RowGroups, may_read: Callable[[bool], bool]
) -> Iterator[Row]:
    """Yields ``rows`` group by group, read ahead until a row's group is whole or a limit is met.

    ``may_read(wait)`` is called before each read, and blocks if ``wait`` is true until there is
    room. False after a blocking call ends the iteration.
    """
    allowed, more = _FIRST_ROWS, True
    while True:
        while more and allowed and not groups.is_whole and not groups.is_full:
            if not may_read(not groups):
                break
            row = next(rows, None)
            if row is None:
                more = False
            else:
                groups.add(row)
                allowed -= 1
        if not groups:
            return
        yield groups.pop()
        allowed = _ROWS_A_ROW
