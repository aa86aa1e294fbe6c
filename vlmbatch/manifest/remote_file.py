"""A manifest's file in an object store or another place that fsspec reaches."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pyarrow as pa

from vlmbatch.errors import ManifestError
from vlmbatch.manifest.compressed import BUFFER_BYTES
from vlmbatch.manifest.second_pass import changed_while_read
from vlmbatch.remote.errors import RemoteError, RemoteFailedError
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.objects import identity, object_info, open_object, opened_info, read_object

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_LOOK_SECONDS = 1.0  # between requests that ask whether an object is still the same


class RemoteFile:
    """A ``StoredFile``. It is read in ranges, and not to tell whether it is the same: for that, the
    store has its digest, or the time when it was written.

    A store that cannot be reached, or fails, is a RemoteFailedError: later, the run may go on.
    """

    def __init__(self, place: RemotePath) -> None:
        self.name = place.url
        self._place = place
        self._state: tuple[str, ...] = ()
        self._looked = float("-inf")

    def open(self) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(self._reader(), BUFFER_BYTES))

    def open_arrow(self) -> pa.NativeFile:
        return pa.PythonFile(self._reader(), mode="r")

    def state(self) -> tuple[str, ...]:
        """As of ``_LOOK_SECONDS`` ago at most; whoever opens the object has looked."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._look()
        return self._state

    def digest(self, end: int | None) -> str:
        """Of the whole object's identity, whatever ``end``."""
        return hashlib.sha256(repr(self.state()).encode()).hexdigest()

    def _look(self) -> None:
        with store_errors():
            self._take(object_info(self._place))

    def _take(self, info: Mapping[str, Any]) -> None:
        self._state = identity(info)
        self._looked = time.monotonic()

    def _reader(self) -> _RemoteReader:
        with store_errors():
            with self._place.errors():
                file = open_object(self._place)
            self._take(opened_info(file, self._place))
        return _RemoteReader(self, file, self._state)

    @contextmanager
    def reading(self, state: tuple[str, ...]) -> Iterator[None]:
        """What a request for the object raises, as ours.

        Some stores refuse one where it is no longer in the ``state`` of when it was opened.
        """
        try:
            with self._place.errors():
                yield
        except RemoteError as error:
            self._look()
            if self._state != state:
                raise changed_while_read(self.name) from error
            with store_errors():
                raise


class _RemoteReader(io.RawIOBase):
    def __init__(self, owner: RemoteFile, file: BinaryIO, state: tuple[str, ...]) -> None:
        self._owner = owner
        self._file = file
        self._state = state

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with self._owner.reading(self._state):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        with self._owner.reading(self._state):
            data = read_object(self._file, len(target))
        target[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def store_errors() -> Iterator[None]:
    """Raises ManifestError for what a store refuses, and would again."""
    try:
        yield
    except RemoteFailedError:
        raise
    except RemoteError as error:
        raise ManifestError(str(error)) from error
