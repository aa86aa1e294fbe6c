"""Arrays in shared memory: none overlaps another, and what nobody holds is used again."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.images import shared_memory
from vlmbatch.images.shared_memory import MappedMemory, SharedMemory

WINDOW = 2**16


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedMemory]:
    monkeypatch.setattr(shared_memory, "_WINDOW_BYTES", WINDOW)
    opened = SharedMemory()
    yield opened
    opened.close()


@settings(max_examples=100)
@given(st.lists(st.integers(0, 20_000), max_size=60), st.integers(0, 2**32).map(random.Random))
def test_arrays_keep_their_numbers_while_others_come_and_go(
    sizes: list[int], rng: random.Random
) -> None:
    memory = SharedMemory()
    held: list[tuple[int, np.ndarray]] = []
    for number, size in enumerate(sizes):
        array = memory.allocate(size)
        assert array.shape == (size,)
        array[:] = number % 256
        held.append((number % 256, array))
        if rng.random() < 0.5:
            held.pop(rng.randrange(len(held)))
        memory.check_integrity()
        assert all((array == fill).all() for fill, array in held)
    memory.close()


def test_what_nobody_holds_is_used_again(memory: SharedMemory) -> None:
    for _ in range(50):
        memory.allocate(WINDOW // 2)
    assert memory.num_bytes <= 2 * WINDOW


def test_a_view_keeps_its_array(memory: SharedMemory) -> None:
    image = memory.allocate(48).reshape(4, 4, 3)[1:, ::2]
    image[...] = 7
    gc.collect()
    others = [memory.allocate(48) for _ in range(100)]
    for other in others:
        other[:] = 1
    assert (image == 7).all()


def test_another_process_sees_the_numbers(memory: SharedMemory) -> None:
    big = memory.copy(np.arange(3 * WINDOW, dtype=np.uint8).reshape(3, -1))
    features = memory.copy(np.arange(12, dtype=np.float32).reshape(3, 4))
    mapped = MappedMemory(os.dup(memory.descriptor))
    for array in (big, features, features[1:]):
        place = memory.place(array)
        assert place is not None
        seen = mapped.array(place)
        assert seen.dtype == array.dtype and (seen == array).all()


def test_arrays_of_elsewhere_have_no_place(memory: SharedMemory) -> None:
    memory.allocate(10)
    assert memory.place(np.zeros(10, np.uint8)) is None
    assert memory.place(memory.copy(np.zeros((0, 3)))) is not None
