"""Results come in any order and leave in the manifest's."""

from __future__ import annotations

from collections.abc import Iterator

from vlmbatch.durable.spill import Spill
from vlmbatch.types import Result


class ReorderBuffer:
    """Holds results until those of all earlier rows have come, all but the first in ``spill``.

    Raises:
        OutputError: by ``push`` and ``ready``, when the file system refuses what spills.
    """

    def __init__(self, spill: Spill[Result], start: int = 0) -> None:
        self._next_index = start
        self._spill = spill
        self._held: dict[int, Result | bytes | int] = {}

    @property
    def lag(self) -> int:
        """How many results are held."""
        return len(self._held)

    @property
    def is_ready(self) -> bool:
        """Whether a result can leave."""
        return self._next_index in self._held

    def push(self, result: Result) -> None:
        """Take a result."""
        assert result.index >= self._next_index and result.index not in self._held, (
            f"row {result.index} came twice"
        )
        self._held[result.index] = self._spill.put(result)

    def ready(self) -> Iterator[Result]:
        """The results that can leave, in order; each is gone from here once it is yielded."""
        while (ticket := self._held.pop(self._next_index, None)) is not None:
            self._next_index += 1
            yield self._spill.take(ticket)
