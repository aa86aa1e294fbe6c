"""Arrays in shared memory: none overlaps another, and what nobody holds is used again."""

from __future__ import annotations

import errno
import gc
import os
import random
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.errors import ErrorCode, OutputError, RowError
from vlmbatch.images import shared_memory
from vlmbatch.images.loading.shared_loader import SharedLoader
from vlmbatch.images.shared_memory import MappedMemory, SharedMemory
from vlmbatch.types import FeatureImage, ImageGrid, ImageInput, ImageRef, PixelImage

WINDOW = 2**16


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedMemory]:
    monkeypatch.setattr(shared_memory, "_WINDOW_BYTES", WINDOW)
    opened = SharedMemory()
    yield opened
    opened.close()


def test_memory_that_is_not_to_be_had(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.allocate(10)

    def refuse(descriptor: int, size: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "ftruncate", refuse)
    message = "cannot grow from 0 to 4 MiB: Cannot allocate memory"
    with pytest.raises(OutputError, match=message):
        memory.allocate(2**22)


@settings(max_examples=60)
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


class HeldLoader:
    """Gives what it is asked to."""

    def __init__(self, *outcomes: ImageInput | RowError) -> None:
        self.futures: list[Future[ImageInput]] = []
        self._outcomes = iter(outcomes)

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        self.futures.append(Future())
        return self.futures[-1]

    def settle(self) -> None:
        for future, outcome in zip(self.futures, self._outcomes, strict=True):
            if isinstance(outcome, RowError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def wait_ready(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_images_are_loaded_into_shared_memory_once(memory: SharedMemory) -> None:
    grid = ImageGrid(1, 1, 1, 12)
    first, again, other = (
        PixelImage(np.full((2, 2, 3), fill, np.uint8), b"%d" % fill, grid) for fill in (1, 1, 2)
    )
    features = FeatureImage(np.ones((2, 3), np.float32), b"f", grid)
    error = RowError(ErrorCode.IMAGE_MISSING, "no file")
    inner = HeldLoader(first, again, other, features, error)
    loader = SharedLoader(inner, memory)
    loading = [loader.submit(ImageRef(str(number))) for number in range(5)]
    assert not any(future.done() for future in loading)
    inner.settle()
    found: list[Any] = [future.result() for future in loading[:4]]
    assert found[0].pixels is found[1].pixels and not found[0].pixels.flags.writeable
    assert [int(image.pixels.max()) for image in found[:3]] == [1, 1, 2]
    assert (found[3].features == 1).all() and found[3].features.dtype == np.float32
    arrays = [found[0].pixels, found[2].pixels, found[3].features]
    assert all(memory.place(array) is not None for array in arrays)
    with pytest.raises(RowError, match="no file"):
        loading[4].result()
