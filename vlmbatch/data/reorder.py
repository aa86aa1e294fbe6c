"""Results come in any order and leave in the manifest's."""

from __future__ import annotations

from vlmbatch.types import Result


class ReorderBuffer:
    """Holds results until those of all earlier rows have come."""

    def __init__(self, start: int = 0) -> None:
        self._next_index = start
        self._held: dict[int, Result] = {}

    @property
    def next_index(self) -> int:
        """The row that is waited for: whoever feeds rows keeps within a bound of it."""
        return self._next_index

    @property
    def lag(self) -> int:
        """How many results wait for an earlier one."""
        return len(self._held)

    def push(self, result: Result) -> list[Result]:
        """Take a result; the ones that can leave, in order."""
        assert result.index >= self._next_index and result.index not in self._held, (
            f"row {result.index} came twice"
        )
        self._held[result.index] = result
        ready = []
        while (result_or_none := self._held.pop(self._next_index, None)) is not None:
            ready.append(result_or_none)
            self._next_index += 1
        return ready
