"""Pixels and features in memory that engine processes map as well: they are copied once at most.

One file in memory, without a name, holds them all: nothing of it can be left behind. Its owner
allocates and frees; who maps it is told where an array is, and for how long.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmbatch.errors import OutputError
from vlmbatch.processes import anonymous_file

_WINDOW_BYTES = 64 * 2**20  # that are mapped at a time; pages that nobody writes take no memory
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array lies: ``offset`` bytes from the start of a window of the file."""

    window: int
    window_bytes: int
    offset: int
    dtype: str
    shape: tuple[int, ...]


class _Window:
    """A mapped part of the file, and what of it is free, as (offset, bytes), in order."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self.start = start
        self.size = size
        self.map = mmap.mmap(descriptor, size, offset=start)
        self.address = np.frombuffer(self.map, np.uint8).ctypes.data
        self.free = [(0, size)]

    def take(self, size: int) -> int | None:
        """The offset of so many bytes, the first that are free."""
        for index, (offset, length) in enumerate(self.free):
            if length >= size:
                left = [(offset + size, length - size)] if length > size else []
                self.free[index : index + 1] = left
                return offset
        return None

    def give_back(self, offset: int, size: int) -> None:
        index = bisect_left(self.free, (offset, 0))
        if index < len(self.free) and self.free[index][0] == offset + size:
            size += self.free.pop(index)[1]
        if index and sum(self.free[index - 1]) == offset:
            before = self.free.pop(index - 1)
            offset, size = before[0], before[1] + size
        insort(self.free, (offset, size))


class SharedMemory:
    """Allocates arrays in a file that ``descriptor`` names. Thread-safe.

    An array's memory is free again when the array and all its views are gone. The file grows with
    what is held at once, and keeps its size.
    """

    def __init__(self) -> None:
        self.descriptor = anonymous_file("vlmbatch-images")
        self._lock = threading.Lock()
        self._windows: list[_Window] = []
        # Arrays may go at any moment, also within ``allocate``: their memory is taken back there.
        self._gone: deque[tuple[_Window, int, int]] = deque()

    def allocate(self, num_bytes: int) -> NDArray[np.uint8]:
        """An array (num_bytes,) of what bytes happen to be there.

        Raises:
            OutputError: there is no memory left, or a limit on the size of files.
        """
        size = max(1, -(-num_bytes // _ALIGNMENT)) * _ALIGNMENT
        with self._lock:
            while self._gone:
                window, *part = self._gone.popleft()
                window.give_back(*part)
            window, offset = self._take(size)
        array = np.frombuffer(window.map, np.uint8, num_bytes, offset)
        weakref.finalize(array, self._gone.append, (window, offset, size)).atexit = False
        return array

    def copy(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array with its numbers in this memory."""
        shared = self.allocate(array.nbytes).view(array.dtype).reshape(array.shape)
        shared[...] = array
        return shared

    def place(self, array: NDArray[Any]) -> Place | None:
        """Where a contiguous array lies; None if that is elsewhere."""
        address = array.ctypes.data
        for window in self._windows:
            if window.address <= address < window.address + window.size:
                offset = address - window.address
                return Place(window.start, window.size, offset, array.dtype.str, array.shape)
        return None

    @property
    def num_bytes(self) -> int:
        """The size of the file."""
        return sum(window.size for window in self._windows)

    def close(self) -> None:
        """Let go of the file; arrays stay what they are. It may be called again."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _take(self, size: int) -> tuple[_Window, int]:
        for window in self._windows:
            offset = window.take(size)
            if offset is not None:
                return window, offset
        window_bytes = -(-size // _WINDOW_BYTES) * _WINDOW_BYTES
        start = self.num_bytes
        try:
            os.ftruncate(self.descriptor, start + window_bytes)
            window = _Window(self.descriptor, start, window_bytes)
        except OSError as error:
            raise OutputError(
                f"the memory that images are in cannot grow from {start // 2**20} to "
                f"{(start + window_bytes) // 2**20} MiB: {error.strerror}"
            ) from error
        offset = window.take(size)
        assert offset is not None
        self._windows.append(window)
        return window, offset

    def check_integrity(self) -> None:
        """Assert that free parts are in order, apart from each other and within their windows."""
        with self._lock:
            for window in self._windows:
                end = -1
                for offset, length in window.free:
                    assert end < offset, "free parts that touch are not one"
                    assert length > 0
                    end = offset + length
                assert end <= window.size


class MappedMemory:
    """The memory of another process's ``SharedMemory``, by the descriptor of its file."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._windows: dict[int, mmap.mmap] = {}

    def array(self, place: Place) -> NDArray[Any]:
        """The array at ``place``, as long as its owner keeps it."""
        window = self._windows.get(place.window)
        if window is None:
            window = mmap.mmap(self.descriptor, place.window_bytes, offset=place.window)
            self._windows[place.window] = window
        dtype = np.dtype(place.dtype)
        count = int(np.prod(place.shape, dtype=np.int64))
        return np.frombuffer(window, dtype, count, place.offset).reshape(place.shape)
