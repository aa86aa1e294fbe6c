"""A buffer that spills: objects, then pickles in memory, then pickles in unlinked files."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from vlmbatch.durable.durable_file import reported

T = TypeVar("T")
Reducers = Mapping[type, Callable[[Any], tuple[Any, ...]]]

_LOOSE = 1024
_BUFFER_BYTES = 2**18
_SEGMENT_BYTES = 2**26
# A ticket of an object on disk: the segment's number, the offset in it and the pickle's length.
_FIELD_BITS = 32
_FIELD = 2**_FIELD_BITS - 1
_NO_REDUCERS: Reducers = MappingProxyType({})


class Spill(Generic[T]):
    """``put`` gives a ticket for an object, ``take`` the object for the ticket, once.

    Up to ``loose`` objects wait as they are, and of further ones up to ``max_bytes`` of pickles in
    memory; the rest goes to files in ``folder`` (None: where temporary files go). The files have no
    names: nobody else can write what is unpickled, and they are gone with the process. One is freed
    when all in it was taken. Objects must be neither ``bytes`` nor ``int``. ``reducers``: as
    ``dispatch_table`` of a pickler, for types that cannot be pickled as they are. Not thread-safe.

    Raises:
        OutputError: by ``put`` and ``take``, when the file system refuses.
    """

    def __init__(
        self,
        max_bytes: int,
        folder: Path | None = None,
        *,
        loose: int = _LOOSE,
        segment_bytes: int = _SEGMENT_BYTES,
        reducers: Reducers = _NO_REDUCERS,
    ) -> None:
        self._reducers = reducers
        self._max_bytes = max_bytes
        self._folder = folder or Path(tempfile.gettempdir())
        self._max_loose = loose
        self._segment_bytes = segment_bytes
        self._num_loose = 0
        self.num_bytes = 0  # of pickles in memory, without what waits to be written
        self._segments: dict[int, _Segment] = {}
        self._last = -1  # number of the segment that is written to

    @property
    def num_segments(self) -> int:
        """How many files are in use."""
        return len(self._segments)

    def put(self, value: T) -> T | bytes | int:
        """Take an object in; the ticket for it."""
        if self._num_loose < self._max_loose:
            self._num_loose += 1
            return value
        data = _pickled(value, self._reducers)
        if self.num_bytes + len(data) <= self._max_bytes:
            self.num_bytes += len(data)
            return data
        assert len(data) <= _FIELD
        with reported(self._folder):
            segment = self._segments.get(self._last)
            if segment is None or segment.size >= self._segment_bytes:
                segment = _Segment(self._folder)
                self._last += 1
                self._segments[self._last] = segment
            offset = segment.append(data)
        return (self._last << _FIELD_BITS | offset) << _FIELD_BITS | len(data)

    def take(self, ticket: T | bytes | int) -> T:
        """The object of a ticket, which is of no use afterwards."""
        if isinstance(ticket, bytes):
            self.num_bytes -= len(ticket)
            data = ticket
        elif isinstance(ticket, int):
            data = self._read(ticket)
        else:
            self._num_loose -= 1
            return ticket
        value: T = pickle.loads(data)
        return value

    def close(self) -> None:
        """Free the files; tickets are of no use any more."""
        while self._segments:
            self._segments.popitem()[1].close()

    def _read(self, ticket: int) -> bytes:
        place, length = ticket >> _FIELD_BITS, ticket & _FIELD
        number, offset = place >> _FIELD_BITS, place & _FIELD
        segment = self._segments[number]
        with reported(self._folder):
            data = segment.read(offset, length)
        if segment.num_left == 0:
            del self._segments[number]
            segment.close()
        return data


def _pickled(value: object, reducers: Reducers) -> bytes:
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = reducers
    pickler.dump(value)
    return buffer.getvalue()


class _Segment:
    """A nameless file, written from its start through a buffer."""

    def __init__(self, folder: Path) -> None:
        self._file: Any = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - see close
        self._written = 0
        self._buffer = bytearray()
        self.num_left = 0

    @property
    def size(self) -> int:
        return self._written + len(self._buffer)

    def append(self, data: bytes) -> int:
        """Where ``data`` begins."""
        offset = self.size
        self._buffer += data
        self.num_left += 1
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()
        return offset

    def read(self, offset: int, length: int) -> bytes:
        self.num_left -= 1
        if offset >= self._written:
            start = offset - self._written
            return bytes(self._buffer[start : start + length])
        data = os.pread(self._file.fileno(), length, offset)
        assert len(data) == length, "a nameless file has lost bytes"
        return data

    def close(self) -> None:
        self._file.close()

    def _flush(self) -> None:
        with memoryview(self._buffer) as left:
            done = 0
            while done < len(left):
                done += os.pwrite(self._file.fileno(), left[done:], self._written + done)
        self._written += done
        self._buffer.clear()
