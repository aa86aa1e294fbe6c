"""A digest of every row's content, by which a later run knows the rows that have not changed.

The file holds the keys of a manifest's rows in order, 16 bytes each.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmbatch.config import SamplingParams
from vlmbatch.data.durable_file import FILES, FileSystem, reported
from vlmbatch.errors import OutputError
from vlmbatch.types import ImageRef, Row

KEY_BYTES = 16

_PERSON = b"vlmbatch row 1"  # changed when the same row would get another key
_BUFFER_BYTES = 2**16
_COPY_BYTES = 2**20
_ABSENT = -1

_SAMPLING_FIELDS = tuple(field.name for field in fields(SamplingParams))
_GREEDY_FIELDS = tuple(name for name in _SAMPLING_FIELDS if name not in ("top_p", "top_k", "seed"))

_encode_json = json.JSONEncoder(separators=(",", ":"), default=repr).encode


def row_key(row: Row) -> bytes:
    """Digest of all in a row that decides its answer, 16 bytes.

    Prompt or messages, sampling parameters (of those that only matter when sampling, none for a
    greedy row) and images: embedded ones by their bytes, files by path, size and time of change,
    so that the key must be taken before the image is read. Not the row's index and id, nor what
    passes through; but where a row is sampled without a seed of its own, its index decides the
    seed. A row that cannot be answered has the key of its error.
    """
    content: list[Any]
    if row.error is not None:
        content = ["error", row.error.code, row.error.message]
    else:
        images = [_image_values(image) for image in row.images]
        content = [row.prompt, row.messages, _sampling_values(row.sampling), images]
    digest = hashlib.blake2b(digest_size=KEY_BYTES, person=_PERSON)
    digest.update(_encode_json(content).encode("ascii"))
    return digest.digest()


def _sampling_values(sampling: SamplingParams | None) -> list[Any]:
    names = _SAMPLING_FIELDS if sampling is None or sampling.temperature > 0 else _GREEDY_FIELDS
    return [getattr(sampling, name, None) for name in names]


def _image_values(image: ImageRef) -> list[Any]:
    if image.data is not None:
        return ["bytes", hashlib.blake2b(image.data, digest_size=32).hexdigest()]
    assert image.path is not None, "an image is a path or bytes"
    try:
        status = os.stat(image.path)  # noqa: PTH116 - a tenth of the time of Path's
        path = os.path.abspath(image.path)  # noqa: PTH100 - the same from every working folder
    except (OSError, ValueError):  # ValueError: no file can have the name
        return ["missing", image.path]
    return ["file", path, status.st_size, status.st_mtime_ns]


class RowKeyWriter:
    """Continues the file of keys at ``path``, or starts it; durable once ``close`` returns.

    What an earlier process wrote stays: its rows may have been answered from what their images were
    then. Not thread-safe.

    Raises:
        OutputError: by every method, when the file system refuses. From then on nothing more is
            written.
    """

    def __init__(self, path: Path, files: FileSystem = FILES) -> None:
        self._path = path
        self._files = files
        self._buffer = bytearray()
        self._failed = False
        with reported(path):
            self._descriptor = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        size = os.fstat(self._descriptor).st_size
        self._num_keys = size // KEY_BYTES
        if size % KEY_BYTES:  # a crash left a part of a key
            try:
                with reported(path):
                    files.truncate(self._descriptor, self._num_keys * KEY_BYTES)
            except OutputError:
                os.close(self._descriptor)
                raise

    def __len__(self) -> int:
        """How many rows have a key, from the first on."""
        return self._num_keys

    def add(self, row: Row) -> None:
        """Take the key of a row, unless an earlier process has. Rows must come in order."""
        if row.index < self._num_keys:
            return
        assert row.index == self._num_keys, f"row {row.index} after {self._num_keys} keys"
        self.append(row_key(row))

    def append(self, keys: bytes) -> None:
        """Take the keys of the next row or rows, end to end."""
        assert len(keys) % KEY_BYTES == 0
        self._buffer += keys
        self._num_keys += len(keys) // KEY_BYTES
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()

    def close(self) -> None:
        """Make the keys durable. Does nothing when called again; after a failure, only lets go."""
        if self._descriptor < 0:
            return
        try:
            self._flush()
            if not self._failed:
                with reported(self._path):
                    self._files.fsync(self._descriptor)
                    self._files.fsync_folder(self._path.parent)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def _flush(self) -> None:
        if self._failed:
            return
        left = memoryview(bytes(self._buffer))
        self._buffer.clear()
        try:
            with reported(self._path):
                while left:
                    written = self._files.write(self._descriptor, left)
                    if written == 0:
                        raise OSError(errno.EIO, "the file system takes no more bytes")
                    left = left[written:]
        except OutputError:
            self._failed = True
            raise


def copy_row_keys(source: Path, target: Path, files: FileSystem = FILES) -> None:
    """Let a new run on the same rows, of which it keeps answers, start with the old one's keys.

    Without a file at ``source`` there are none to copy.

    Raises:
        OutputError: ``source`` cannot be read or ``target`` not be written.
    """
    try:
        file = source.open("rb")
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unreadable(source, error) from error
    writer = RowKeyWriter(target, files)
    try:
        with file:
            while chunk := file.read(_COPY_BYTES):
                writer.append(chunk[: len(chunk) - len(chunk) % KEY_BYTES])
    except OSError as error:
        raise _unreadable(source, error) from error
    finally:
        writer.close()


class RowKeys:
    """Finds rows by their keys: at most 28 bytes of memory a row.

    ``heads``: (N,) uint64, the keys' first eight bytes, ascending; ``rows``: (N,) uint32, whose key
    each is of; ``keys``: (M, 2) uint64, the keys of all rows in order.
    """

    def __init__(
        self, heads: NDArray[np.uint64], rows: NDArray[np.uint32], keys: NDArray[np.uint64]
    ) -> None:
        self._heads = heads
        self._rows = rows
        self._keys = keys

    @classmethod
    def load(cls, path: Path, wanted: NDArray[np.bool_] | None = None) -> RowKeys:
        """Read the keys at ``path``, of those rows only that ``wanted`` (by row index) is True of.

        A file that is missing or shorter than the manifest only has fewer rows to find.

        Raises:
            OutputError: the file cannot be read.
        """
        try:
            keys = np.fromfile(path, np.dtype(("<u8", KEY_BYTES // 8)))
        except FileNotFoundError:
            keys = np.empty((0, KEY_BYTES // 8), "<u8")
        except OSError as error:
            raise _unreadable(path, error) from error
        if wanted is None:
            rows = np.arange(len(keys), dtype=np.uint32)
        else:
            rows = np.flatnonzero(wanted[: len(keys)]).astype(np.uint32)
        heads = keys[rows, 0]
        order = np.argsort(heads, kind="stable").astype(np.uint32)
        return cls(heads[order], rows[order], keys)

    def __len__(self) -> int:
        """How many rows can be found."""
        return len(self._rows)

    def find(self, keys: bytes) -> NDArray[np.int64]:
        """The rows that have these keys, given end to end; -1 where there is none.

        Of several rows with one key it is the first. Shape (number of keys,).
        """
        sought = np.frombuffer(keys, "<u8").reshape(-1, KEY_BYTES // 8)
        found = np.full(len(sought), _ABSENT, np.int64)
        pending = np.arange(len(sought))
        places = np.searchsorted(self._heads, sought[:, 0])
        while pending.size:
            inside = places < len(self._heads)
            pending, places = pending[inside], places[inside]
            same_head = self._heads[places] == sought[pending, 0]
            pending, places = pending[same_head], places[same_head]
            rows = self._rows[places]
            same = self._keys[rows, 1] == sought[pending, 1]
            found[pending[same]] = rows[same]
            pending, places = pending[~same], places[~same] + 1
        return found


def _unreadable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be read: {error.strerror}. Check the disk and the folder's permissions, "
        "then run again"
    )
