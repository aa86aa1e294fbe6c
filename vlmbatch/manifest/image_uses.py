"""Which rows of a manifest show the same image, as far as the manifest itself tells."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NONE = 0
_SAMPLE_BYTES = 64


class ImageUses:
    """One hash a row, eight bytes, of its first image's path or embedded bytes.

    Rows are put together by it and no more: that two images may have one hash does no harm.
    """

    def __init__(self) -> None:
        self._keys = array("q")

    def add(self, value: Any) -> None:
        """Take in the first image of the next row, whatever stands there."""
        self._keys.append(_key(value))

    def last_uses(self) -> NDArray[np.int64] | None:
        """For each row the last row with its image, or itself. Shape (N,).

        None where no image is of more than one row.
        """
        keys = np.frombuffer(self._keys, np.int64)
        order = np.argsort(keys, kind="stable")
        in_order = keys[order]
        is_last = np.empty(len(keys), np.bool_)
        is_last[-1:] = True
        np.not_equal(in_order[1:], in_order[:-1], out=is_last[:-1])
        is_last |= in_order == _NONE
        if is_last.all():
            return None
        ends = np.flatnonzero(is_last)
        last_uses = np.empty(len(keys), np.int64)
        last_uses[order] = np.repeat(order[ends], np.diff(ends, prepend=-1))
        return last_uses


def _key(value: Any) -> int:
    if isinstance(value, dict):
        data = value.get("bytes")
        value = value.get("path") if data is None else data
    if isinstance(value, str):
        return hash(value)
    if isinstance(value, bytes):
        # The end of a compressed image differs from that of any other.
        return hash((len(value), value[-_SAMPLE_BYTES:]))
    return _NONE
