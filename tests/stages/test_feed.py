"""The feed hands every row out once, in order, and reads no further ahead than it may."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from worker_processes import wait_until

from vlmbatch.config import SamplingParams
from vlmbatch.errors import ManifestError
from vlmbatch.stages.feed import RowFeed
from vlmbatch.stages.prepare import Prepared
from vlmbatch.types import ImageGrid, ImageRef, PixelImage, Request, Row


def rows(count: int) -> Iterator[Row]:
    for index in range(count):
        yield Row(index, str(index), index + 1, "m.jsonl")


def take_all(feed: RowFeed) -> list[int]:
    taken: list[int] = []
    while True:
        prepared = feed.poll(timeout=5.0)
        if prepared is None:
            assert feed.exhausted
            return taken
        taken.append(prepared.row.index)
        feed.release()


def test_every_row_comes_out_once_however_long_each_takes() -> None:
    def prepare(row: Row) -> Prepared:
        time.sleep(0.002 * (row.index % 3))
        return Prepared(row)

    feed = RowFeed(rows(50), prepare, threads=4, depth=8, window=100)
    assert sorted(take_all(feed)) == list(range(50))
    feed.close()


def test_a_slow_row_holds_up_no_other() -> None:
    gate = threading.Event()

    def prepare(row: Row) -> Prepared:
        if row.index == 0:
            assert gate.wait(30)
        return Prepared(row)

    feed = RowFeed(rows(40), prepare, threads=2, depth=8, window=100)
    others = [feed.poll(timeout=5.0).row.index for _ in range(39)]
    assert others == list(range(1, 40))
    gate.set()
    assert take_all(feed) == [0]
    feed.close()


def test_encoded_images_are_held_up_to_a_limit_of_bytes() -> None:
    held: list[int] = []
    most = 0
    gate = threading.Semaphore(0)

    def with_images() -> Iterator[Row]:
        for row in rows(30):
            yield replace(row, images=(ImageRef(data=b"%100d" % row.index),))

    def prepare(row: Row) -> Prepared:
        nonlocal most
        held.append(row.index)
        most = max(most, len(held))
        assert gate.acquire(timeout=30)
        held.remove(row.index)
        return Prepared(row)

    feed = RowFeed(with_images(), prepare, threads=16, depth=16, window=100, max_bytes=350)
    time.sleep(0.2)
    assert most == 3
    gate.release(30)
    assert sorted(take_all(feed)) == list(range(30))
    feed.close()


def test_bytes_that_rows_share_count_once() -> None:
    photo, other = bytes(300), bytes(100)
    under_way: list[int] = []
    gate = threading.Semaphore(0)

    def with_images() -> Iterator[Row]:
        for row in rows(30):
            yield replace(row, images=(ImageRef(data=other if row.index == 10 else photo),))

    def prepare(row: Row) -> Prepared:
        under_way.append(row.index)
        assert gate.acquire(timeout=30)
        return Prepared(row)

    feed = RowFeed(with_images(), prepare, threads=16, depth=16, window=100, max_bytes=350)
    time.sleep(0.2)
    assert sorted(under_way) == list(range(10)), "the next one brings another image, too large"
    gate.release(9)
    time.sleep(0.2)
    assert len(under_way) == 10, "one row still has the photo"
    gate.release(21)
    assert sorted(take_all(feed)) == list(range(30))
    feed.close()


def with_pixels(row: Row, num_bytes: int) -> Prepared:
    pixels = np.zeros((num_bytes // 3, 1, 3), np.uint8)
    image = PixelImage(pixels, b"", ImageGrid(1, 1, 1, num_bytes))
    return Prepared(row, Request(row.index, [1], SamplingParams(), (image,)))


def with_an_image(count: int) -> Iterator[Row]:
    for row in rows(count):
        yield replace(row, images=(ImageRef("photo"),))


@pytest.mark.parametrize(("num_bytes", "ready"), [(30, 11), (150, 2)])
def test_pixels_count_as_many_bytes_as_they_have(num_bytes: int, ready: int) -> None:
    """And not as many as the largest image, once one is seen: 330 bytes are allowed."""
    feed = RowFeed(
        with_an_image(60),
        partial(with_pixels, num_bytes=num_bytes),
        threads=1,
        depth=60,
        window=100,
        image_bytes=300,
        max_pixel_bytes=330,
    )
    wait_until(lambda: feed.num_begun >= ready)
    time.sleep(0.1)
    assert feed.num_begun == ready
    assert len(take_all(feed)) == 60
    feed.close()


def test_no_row_is_begun_while_images_take_more_than_was_expected_of_them() -> None:
    begun: list[int] = []

    def prepare(row: Row) -> Prepared:
        begun.append(row.index)
        return with_pixels(row, 3 if row.index < 3 else 900)

    feed = RowFeed(
        with_an_image(40),
        prepare,
        threads=1,
        depth=40,
        window=100,
        image_bytes=3,
        max_pixel_bytes=300,
    )
    wait_until(lambda: len(begun) == 4)
    time.sleep(0.1)
    assert begun == [0, 1, 2, 3]
    assert sorted(take_all(feed)) == list(range(40)), "one that is too large alone is let in"
    feed.close()


def test_a_row_of_more_images_than_there_is_room_for_comes_alone() -> None:
    images = (ImageRef("photo"),) * 5
    feed = RowFeed(
        (replace(row, images=images) for row in rows(6)),
        partial(with_pixels, num_bytes=300),
        threads=2,
        depth=6,
        window=10,
        image_bytes=300,
        max_pixel_bytes=400,
    )
    assert sorted(take_all(feed)) == list(range(6))
    feed.close()


def test_rows_do_not_wait_for_one_that_waits_for_their_thread() -> None:
    """Texts, and behind them an image that may have more bytes than there is room for."""
    whole = threading.Event()

    def prepare(row: Row) -> Prepared:
        assert whole.wait(30)
        return Prepared(row)

    first, second, third = rows(3)
    feed = RowFeed(
        iter([first, second, replace(third, images=(ImageRef("photo"),))]),
        prepare,
        threads=1,
        depth=6,
        window=10,
        image_bytes=300,
        max_pixel_bytes=100,
    )
    wait_until(lambda: feed.num_begun == 3)
    whole.set()
    assert take_all(feed) == [0, 1, 2]
    feed.close()


def test_polling_without_waiting_returns_at_once() -> None:
    gate = threading.Event()

    def prepare(row: Row) -> Prepared:
        gate.wait(10)
        return Prepared(row)

    feed = RowFeed(rows(1), prepare, threads=1, depth=8, window=100)
    assert feed.poll(timeout=0.0) is None and not feed.exhausted
    gate.set()
    assert take_all(feed) == [0]
    feed.close()


def test_no_more_rows_are_read_than_the_window_allows() -> None:
    read = []

    def counted() -> Iterator[Row]:
        for row in rows(1000):
            read.append(row.index)
            yield row

    feed = RowFeed(counted(), Prepared, threads=2, depth=500, window=10)
    for _ in range(10):
        assert feed.poll(timeout=5.0) is not None
    assert feed.poll(timeout=0.2) is None and not feed.exhausted
    assert len(read) <= 11
    feed.release()
    assert feed.poll(timeout=5.0) is not None
    feed.close()


def test_an_error_of_the_reader_reaches_the_caller() -> None:
    def failing() -> Iterator[Row]:
        yield from rows(3)
        raise ManifestError("m.jsonl: changed while it was being read")

    feed = RowFeed(failing(), Prepared, threads=2, depth=8, window=100)
    assert [feed.poll(timeout=5.0).row.index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ManifestError, match="changed"):
        feed.poll(timeout=5.0)
    feed.close()


def test_closing_early_ends_the_threads() -> None:
    before = threading.active_count()
    feed = RowFeed(rows(10_000), Prepared, threads=2, depth=4, window=100_000)
    feed.poll(timeout=5.0)
    feed.close()
    assert threading.active_count() == before
