"""A file that a manifest is read from, wherever it is kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO, Protocol

import pyarrow as pa

from vlmbatch.errors import ManifestError

_READ_BYTES = 2**20


class StoredFile(Protocol):
    """Every method raises ManifestError where the file cannot be read. ``name``: path or URL."""

    name: str

    def open(self) -> BinaryIO:
        """Its bytes, which can be sought in."""
        ...

    def open_arrow(self) -> pa.NativeFile:
        """The same for pyarrow, which is to close it."""
        ...

    def state(self) -> object:
        """Equal to an earlier one as long as nothing was written there."""
        ...

    def digest(self, end: int | None) -> str:
        """Another one where the bytes up to ``end`` (None: all) are others."""
        ...


class LocalFile:
    """A file of this machine."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def open(self) -> BinaryIO:
        try:
            return self._path.open("rb", buffering=_READ_BYTES)
        except OSError as error:
            raise self._unreadable(error) from error

    def open_arrow(self) -> pa.NativeFile:
        try:
            # pyarrow takes a path in text for UTF-8, and one with a colon for a URI.
            return pa.OSFile(os.fsencode(self._path))
        except OSError as error:
            raise self._unreadable(error) from error

    def state(self) -> tuple[int, ...]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise self._unreadable(error) from error
        times = status.st_mtime_ns, status.st_ctime_ns
        return status.st_dev, status.st_ino, status.st_size, *times

    def digest(self, end: int | None) -> str:
        """SHA-256 of the bytes."""
        hasher = hashlib.sha256()
        try:
            with self._path.open("rb", buffering=0) as file:
                while chunk := file.read(_READ_BYTES if end is None else min(_READ_BYTES, end)):
                    hasher.update(chunk)
                    if end is not None:
                        end -= len(chunk)
        except OSError as error:
            raise self._unreadable(error) from error
        return hasher.hexdigest()

    def _unreadable(self, error: OSError) -> ManifestError:
        reason = os.strerror(error.errno) if error.errno else str(error)
        return ManifestError(f"{self.name}: cannot be read: {reason}")
