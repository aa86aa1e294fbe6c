"""Work on rows ahead of need: how far, and in which order it is waited for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.images.read_ahead import read_ahead
from vlmbatch.types import ImageRef, Row


class Work:
    """Rows with images of these sizes; work on all of them is done the moment it is started."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.num_started = 0

    def start(self) -> Iterator[tuple[Row, Future[int]]]:
        for index, size in enumerate(self.sizes):
            self.num_started += 1
            future: Future[int] = Future()
            future.set_result(index)
            images = (ImageRef(data=bytes(size)),) if size else ()
            yield Row(index, str(index), index + 1, "m", images=images), future


@settings(deadline=None)
@given(st.lists(st.integers(0, 500), max_size=60), st.integers(1, 8), st.integers(0, 1500))
def test_in_order_and_never_further_ahead_than_the_limits(
    sizes: list[int], max_rows: int, max_bytes: int
) -> None:
    work = Work(sizes)
    seen = 0
    for row, result in read_ahead(work.start(), max_rows, max_bytes):
        assert row.index == result == seen
        seen += 1
        ahead = sizes[seen : work.num_started - 1]  # but for the one row that was met last
        assert len(ahead) < max_rows
        assert sum(ahead) <= max_bytes
    assert seen == len(sizes)


def test_it_reads_as_far_ahead_as_it_may() -> None:
    work = Work([0] * 50)
    next(read_ahead(work.start(), 8, 0))
    assert work.num_started == 8
    work = Work([100] * 50)
    next(read_ahead(work.start(), 8, 350))
    assert work.num_started == 4


def test_what_failed_is_raised_in_its_turn() -> None:
    def start() -> Iterator[tuple[Row, Future[int]]]:
        for index in range(4):
            future: Future[int] = Future()
            if index == 1:
                future.set_exception(OSError("it broke"))
            else:
                future.set_result(index)
            yield Row(index, "", 1, "m"), future

    results = read_ahead(start(), 3, 0)
    assert next(results)[1] == 0
    with pytest.raises(OSError, match="it broke"):
        next(results)
