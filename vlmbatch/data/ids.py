"""Row ids: how they are read, and whether all of them differ."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from vlmbatch.errors import ErrorCode, RowError


def read_id(value: Any, index: int) -> str:
    """A row's id as a string; a row without one takes its index.

    Raises:
        RowError: neither a string nor an integer.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return str(index)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RowError(
        ErrorCode.MANIFEST_LINE_INVALID,
        f"the id must be a string or an integer, got {value!r:.80} ({type(value).__name__})",
    )


def unknown_id(index: int) -> str:
    """What stands for the id of a row whose own cannot be read: its index would be the id of
    another row wherever ids are numbers."""
    return f"#{index}"


class IdHashes:
    """The ids of a whole manifest in eight bytes each."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, row_id: str) -> None:
        self._hashes.append(hash(row_id))

    def repeated(self) -> frozenset[int]:
        """Hashes that occur more than once: of a duplicate id or, very rarely, of two ids."""
        hashes = np.sort(np.frombuffer(self._hashes, dtype=np.int64))
        return frozenset(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
