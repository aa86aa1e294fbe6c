"""Rows with one image leave together; every row leaves once, and none waits for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.durable.spill import Spill
from vlmbatch.manifest.image_uses import ImageUses
from vlmbatch.stages import grouping
from vlmbatch.stages.grouping import RowGroups, in_groups
from vlmbatch.types import ImageRef, Row

Images = list[int | None]


def rows_of(images: Iterable[int | None], size: int = 0) -> Iterator[Row]:
    for index, image in enumerate(images):
        refs = () if image is None else (ImageRef(f"{image}.jpg", b"j" * size if size else None),)
        yield Row(index, str(index), index + 1, "m.jsonl", "prompt", images=refs)


def groups_of(images: Images, max_encoded_bytes: int = 2**20) -> RowGroups:
    uses = ImageUses()
    for image in images:
        uses.add(None if image is None else f"{image}.jpg")
    last_uses = uses.last_uses()
    assert last_uses is not None, "no image is of more than one row"
    return RowGroups(last_uses, Spill(200, loose=2), max_encoded_bytes)


def always(wait: bool) -> bool:
    return True


class Window:
    """At most ``size`` rows read and not yet written; written in the order of the manifest."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.num_read = 0
        self.next_to_write = 0
        self.waiting: set[int] = set()

    def may_read(self, wait: bool) -> bool:
        room = self.num_read - self.next_to_write < self.size
        assert room or not wait, "nobody would ever read or write again"
        self.num_read += room
        return room

    def answer(self, row: Row) -> None:
        self.waiting.add(row.index)
        while self.next_to_write in self.waiting:
            self.waiting.remove(self.next_to_write)
            self.next_to_write += 1


def order(
    images: Images, groups: RowGroups, may_read: Callable[[bool], bool] = always
) -> list[int]:
    return [row.index for row in in_groups(rows_of(images), groups, may_read)]


SHARED = st.lists(st.one_of(st.none(), st.integers(0, 6)), min_size=8, max_size=40).filter(
    lambda images: len([i for i in images if i is not None]) > 7
)


@given(SHARED)
def test_rows_leave_by_image_in_the_order_of_the_first(images):
    firsts: dict[object, int] = {}
    for index, image in enumerate(images):
        firsts.setdefault(("alone", index) if image is None else image, index)
    by_first = sorted(
        range(len(images)), key=lambda i: (i if images[i] is None else firsts[images[i]], i)
    )
    groups = groups_of(images)
    assert order(images, groups) == by_first
    assert len(groups) == 0


@given(SHARED, st.integers(1, 12), st.integers(1, 6), st.integers(1, 3))
def test_every_row_leaves_once_however_little_may_be_read_ahead(images, size, first_rows, more):
    groups, window, left = groups_of(images), Window(size), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "_FIRST_ROWS", first_rows)
        patch.setattr(grouping, "_ROWS_A_ROW", more)
        for row in in_groups(rows_of(images), groups, window.may_read):
            left.append(row.index)
            window.answer(row)
            assert len(groups) <= size
    assert sorted(left) == list(range(len(images)))
    assert window.next_to_write == len(images)


def test_questions_are_asked_image_by_image():
    images: Images = [image for _question in range(4) for image in range(50)]
    groups = groups_of(images)
    assert [images[index] for index in order(images, groups)] == [
        i for i in range(50) for _ in "four"
    ]


def test_no_further_is_read_than_a_group_needs():
    read = 0

    def may_read(wait: bool) -> bool:
        nonlocal read
        read += 1
        return True

    images: Images = [0, 1, 0, 1, 2, 3, 2, 4]
    out = in_groups(rows_of(images), groups_of(images), may_read)
    assert [next(out).index, read] == [0, 3]
    assert [next(out).index, read] == [2, 3]
    assert [next(out).index, read] == [1, 4]


def test_rows_leave_before_their_group_is_whole_when_that_takes_too_long(monkeypatch):
    monkeypatch.setattr(grouping, "_FIRST_ROWS", 10)
    monkeypatch.setattr(grouping, "_ROWS_A_ROW", 4)
    images: Images = [*range(30), *range(30)]
    left = order(images, groups_of(images))
    assert left[0] == 0 and left[1] == 1, "row 30 is far"
    assert sorted(left) == list(range(60))
    pairs = sum(after == before + 30 for before, after in pairwise(left))
    assert pairs > 20, "and yet most rows find theirs"


def test_embedded_images_are_read_ahead_up_to_a_limit_of_bytes():
    images: Images = [*range(20), *range(20)]
    groups = groups_of(images, max_encoded_bytes=350)
    most = 0
    for _ in in_groups(rows_of(images, size=100), groups, always):
        most = max(most, len(groups) + 1)
    assert most == 4


def test_embedded_images_that_rows_share_count_once_and_stay_shared():
    photos = [bytes([image]) * 100 for image in range(3)]
    images: Images = [0, 1, 2, 2, 1, 0] * 5
    groups = groups_of(images, max_encoded_bytes=350)
    rows = [
        replace(row, images=(ImageRef("label", photos[image]),))
        for row, image in zip(rows_of(images), images, strict=True)
        if image is not None
    ]
    for row in rows:
        groups.add(row)
        assert not groups.is_full, "three images, whatever the rows"
    out = [groups.pop() for _ in rows]
    assert sorted(out, key=lambda row: row.index) == rows
    assert {id(row.images[0].data) for row in out} == set(map(id, photos)), "none was copied"
    assert groups._held.num_bytes == 0


def test_it_ends_when_no_more_may_be_read():
    images: Images = [0, 1, 0, 1]
    allowed = iter([True, True, False])
    assert order(images, groups_of(images), lambda wait: next(allowed, False)) == [0, 1]
