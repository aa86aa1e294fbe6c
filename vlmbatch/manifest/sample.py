"""Rows spread over a manifest: one of each of N stretches of equal length.

A stretch gives one row by chance (stratified sampling), so that a manifest sorted by anything is
seen from its head to its end. The seed alone decides which: Python keeps the sequence of
``random.Random(seed).random()`` the same in all its versions.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray


def sampled_rows(num_rows: int, size: int, seed: int) -> NDArray[np.int64]:
    """The numbers of ``size`` rows of ``num_rows``, ascending; all where there are no more.

    Shape (min(size, num_rows),).
    """
    if size >= num_rows:
        return np.arange(num_rows)
    chance = random.Random(seed)
    rows = np.empty(size, np.int64)
    for number in range(size):
        start, end = num_rows * number // size, num_rows * (number + 1) // size
        rows[number] = start + int(chance.random() * (end - start))
    return rows
