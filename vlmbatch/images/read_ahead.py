"""Work on rows that is started ahead of need and waited for in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from vlmbatch.images.held_images import HeldImages
from vlmbatch.types import Row

T = TypeVar("T")


def read_ahead(
    started: Iterable[tuple[Row, Future[T]]], max_rows: int, max_bytes: int
) -> Iterator[tuple[Row, T]]:
    """Each row with the result of its future, in the order of ``started``; raises what it raised.

    ``started`` starts the work on a row when it is advanced: until ``max_rows`` rows are under way,
    or their embedded images have more than ``max_bytes`` (but always for one row).
    """
    window: deque[tuple[Row, Future[T]]] = deque()
    held = HeldImages()
    for row, future in started:
        window.append((row, future))
        held.add(row.images)
        while len(window) == max_rows or held.num_bytes > max_bytes:
            first, result = window.popleft()
            held.remove(first.images)
            yield first, result.result()
    while window:
        first, result = window.popleft()
        yield first, result.result()
