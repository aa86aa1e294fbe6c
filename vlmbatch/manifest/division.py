"""Which rows of a manifest belong to which part.

Parts are ranges of row numbers of about equal length, in order: what joins them copies files one
after another, a part's rows are found by skipping those before, whole row groups and files at a
time, and rows that stand together stay so. Rows that show one image are answered more cheaply
together: a boundary that would come between them moves to the next image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlmbatch.config.part import Part

_REACH = 4  # a boundary moves by at most this fraction of a part


def rows_of_part(part: Part, num_rows: int, last_uses: NDArray[np.int64] | None) -> range:
    """The rows of one part of a manifest of ``num_rows``; none where there are more parts.

    ``last_uses``: as of ``ImageUses``, shape (N,), for the whole manifest. The parts of one
    manifest follow each other without gaps and have all of its rows.
    """
    start = _boundary(part.number, part.count, num_rows, last_uses)
    return range(start, _boundary(part.number + 1, part.count, num_rows, last_uses))


def uses_within(
    last_uses: NDArray[np.int64] | None, rows: range | NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """``last_uses`` of these rows alone, ascending, which are numbered from 0.

    None where no image is of more than one of them.
    """
    if last_uses is None:
        return None
    chosen = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
    _, images = np.unique(last_uses[chosen], return_inverse=True)
    own = np.arange(len(images))
    last_of_image = np.empty(len(images), np.int64)
    last_of_image[images] = own  # of equal indexes the last assignment stays, as numpy documents
    last = last_of_image[images]
    return None if np.array_equal(last, own) else last


def _boundary(number: int, count: int, num_rows: int, last_uses: NDArray[np.int64] | None) -> int:
    """The first row of part ``number``."""
    row = num_rows * number // count
    if last_uses is None or row in (0, num_rows):
        return row
    # Less than the rows of a part: boundaries stay in order.
    near = last_uses[row - 1 : row + num_rows // (_REACH * count) + 1]
    first_of_image = np.flatnonzero(near[1:] != near[:-1])
    return row + int(first_of_image[0]) if len(first_of_image) else row
