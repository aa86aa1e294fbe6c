"""A file that is read twice: the second pass gives out nothing but what the first has seen."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, BinaryIO, cast

from vlmbatch.errors import ManifestError
from vlmbatch.manifest.compressed import BUFFER_BYTES
from vlmbatch.manifest.stored_file import StoredFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK_BYTES = 2**20


class SeenFile:
    """A file as a scan has found it: ``state`` is from before it was read, up to ``end``.

    Raises:
        ManifestError: it has changed since.
    """

    def __init__(self, file: StoredFile, state: object, end: int | None) -> None:
        self._file = file
        self._state = state
        self._end = end
        self.digest = file.digest(end)
        self.check()

    def check(self) -> None:
        """That the file is what was seen, also where it was replaced meanwhile.

        Raises:
            ManifestError: it is not.
        """
        if (state := self._file.state()) == self._state:
            return
        if self._file.digest(self._end) != self.digest:
            raise changed_while_read(self._file.name)
        self._state = state


class StreamDigest:
    """The SHA-256 of a stream, taken piece by piece, and what it was at the end of each block."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()
        self._block_ends: list[bytes] = []
        self.num_bytes = 0

    def update(self, data: bytes, /) -> None:
        room = _BLOCK_BYTES - self.num_bytes % _BLOCK_BYTES
        while len(data) >= room:
            self._hasher.update(data[:room])
            self._block_ends.append(self._hasher.digest())
            self.num_bytes += room
            data, room = data[room:], _BLOCK_BYTES
        self._hasher.update(data)
        self.num_bytes += len(data)

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()

    def at(self, num_bytes: int) -> bytes:
        """The digest of so many bytes, which are whole blocks or all there are."""
        if num_bytes == self.num_bytes:
            return self._hasher.digest()
        return self._block_ends[num_bytes // _BLOCK_BYTES - 1]


def same_stream(stream: BinaryIO, seen: StreamDigest, name: str) -> BinaryIO:
    """``stream`` as far as an earlier pass has seen it; closes it when it is closed.

    Each block is compared before any of it is given out. What follows the bytes that were seen is
    left out: a file may grow.

    Raises:
        ManifestError: by reading, when the bytes are others, or fewer.
    """
    return cast(BinaryIO, io.BufferedReader(_SameBytes(stream, seen, name), BUFFER_BYTES))


def changed_while_read(name: str) -> ManifestError:
    """To be raised when a manifest is no longer what its first pass has seen."""
    return ManifestError(
        f"{name}: changed while it was being read: what it holds is not what was counted and "
        "checked at the start. Run again when it changes no more; `run` with --incremental keeps "
        "the answers of rows that are the same"
    )


class _SameBytes(io.RawIOBase):
    def __init__(self, stream: BinaryIO, seen: StreamDigest, name: str) -> None:
        self._stream = stream
        self._seen = seen
        self._name = name
        self._hasher = hashlib.sha256()
        self._num_read = 0
        self._block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not self._block:
            self._block = memoryview(self._next_block())
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._block))
        target[:count] = self._block[:count]
        self._block = self._block[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()

    def _next_block(self) -> bytes:
        size = min(_BLOCK_BYTES, self._seen.num_bytes - self._num_read)
        data = self._stream.read(size) if size else b""
        self._hasher.update(data)
        self._num_read += size
        if size and (len(data) < size or self._hasher.digest() != self._seen.at(self._num_read)):
            raise changed_while_read(self._name)
        return data
