"""A digest of every row's content, by which a later run knows the rows that have not changed.

The file holds the keys of a manifest's rows in order, 16 bytes each.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vlmbatch.config import SamplingParams
from vlmbatch.durable.content_digest import content_digest
from vlmbatch.durable.durable_file import FILES, DurableFile, FileSystem, reported
from vlmbatch.errors import OutputError
from vlmbatch.types import ImageRef, Row

KEY_BYTES = 16

_PERSON = b"vlmbatch row 1"  # changed when the same row would get another key
_BUFFER_BYTES = KEY_BYTES  # none waits: a row's key outlives a kill before the row is answered
_COPY_BYTES = 2**20
_ROW = np.uint64(0xFFFFFFFF)
_HEAD = ~_ROW

_ONLY_SAMPLED = frozenset(("top_p", "top_k", "min_p", "seed"))
_FIRST_FIELDS = tuple(SamplingParams().settings())  # of versions that had no others

_encode_json = json.JSONEncoder(separators=(",", ":"), default=repr).encode


def row_key(row: Row) -> bytes:
    """Digest of all in a row that decides its answer, 16 bytes.

    Prompt or messages, sampling parameters (of those that only matter when sampling, none for a
    greedy row) and images, with the row's own resolution: embedded ones by their bytes, files by
    path, size and time of change, so that the key must be taken before the image is read. Not the
    row's index and id, nor what passes through; but where a row is sampled without a seed of its
    own, its index decides the seed. A row that cannot be answered has the key of its error.
    """
    content: list[Any]
    if row.error is not None:
        content = ["error", row.error.code, row.error.message]
    else:
        images = [_image_values(image) for image in row.images]
        content = [row.prompt, row.messages, _sampling_values(row.sampling), images]
        if row.prompt_token_ids is not None:
            content.append(row.prompt_token_ids)
    digest = hashlib.blake2b(digest_size=KEY_BYTES, person=_PERSON)
    digest.update(_encode_json(content).encode("ascii"))
    return digest.digest()


def _sampling_values(sampling: SamplingParams | None) -> list[Any]:
    if sampling is None:
        return [None] * len(_FIRST_FIELDS)
    may_sample = sampling.temperature > 0 or sampling.best_of_retries
    left_out = frozenset() if may_sample else _ONLY_SAMPLED
    settings = sampling.settings()
    values = [settings.pop(name) for name in _FIRST_FIELDS]
    values = [v for name, v in zip(_FIRST_FIELDS, values, strict=True) if name not in left_out]
    return values + [[name, v] for name, v in settings.items() if name not in left_out]


def _image_values(image: ImageRef) -> list[Any]:
    values = _source_values(image)
    if image.page is not None:
        values = [*values, "page", *astuple(image.page)]
    if image.resolution is None:  # as in versions where rows had none of their own
        return values
    return [*values, *astuple(image.resolution)]


def _source_values(image: ImageRef) -> list[Any]:
    if image.data is not None:
        return ["bytes", content_digest(image.data).hex()]
    if image.url is not None:
        return ["url", image.url]
    assert image.path is not None, "an image is a path, bytes or a URL"
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
        self._files = files
        self._buffer = bytearray()
        self._failed = False
        with reported(path):
            self._file = DurableFile(path, files, flags=os.O_APPEND)
            try:
                size = os.fstat(self._file.fileno()).st_size
                self._num_keys = size // KEY_BYTES
                if size % KEY_BYTES:  # a crash left a part of a key
                    files.truncate(self._file.fileno(), self._num_keys * KEY_BYTES)
            except OSError:
                self._file.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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
        if self._file.closed:
            return
        try:
            self._flush()
            if not self._failed:
                with reported(self._file.path):
                    self._file.sync()
                    self._files.fsync_folder(self._file.path.parent)
        finally:
            self._file.close()

    def _flush(self) -> None:
        if self._failed:
            return
        try:
            with reported(self._file.path):
                self._file.write(self._buffer)
        except OutputError:
            self._failed = True
            raise
        self._buffer.clear()


def copy_row_keys(source: Path, target: Path, files: FileSystem = FILES) -> None:
    """Start the keys of a new run on the same rows, of which it keeps answers, with the old one's.

    Without a file at ``source`` there are none to copy.

    Raises:
        OutputError: ``source`` cannot be read or ``target`` not be written.
    """
    with _reading(source), RowKeyWriter(target, files) as writer, source.open("rb") as file:
        while chunk := file.read(_COPY_BYTES):
            writer.append(chunk[: len(chunk) - len(chunk) % KEY_BYTES])


def rows_match(path: Path, rows: Iterator[Row], least: int = 0) -> bool:
    """Whether the first of ``rows`` have the keys at ``path``, in order, and these are at least so
    many.

    Raises:
        OutputError: ``path`` cannot be read.
    """
    num_keys = 0
    with _reading(path), path.open("rb") as file:
        while len(key := file.read(KEY_BYTES)) == KEY_BYTES:
            row = next(rows, None)
            if row is None or row_key(row) != key:
                return False
            num_keys += 1
    return num_keys >= least


class RowKeys:
    """Finds rows by their keys: 24 bytes of memory a row.

    ``keys``: (N, 2) uint64, the keys in row order. ``index``: (M,) uint64, ascending: of each row
    that can be found the first 32 bits of the key, and below them the row's number.
    """

    def __init__(self, keys: NDArray[np.uint64], index: NDArray[np.uint64]) -> None:
        self._keys = keys
        self._index = index

    @classmethod
    def load(cls, path: Path, wanted: NDArray[np.bool_] | None = None) -> RowKeys:
        """Read the keys at ``path``, of those rows only that ``wanted`` (by row index) is True of.

        A file that is missing or shorter than the manifest only has fewer rows to find.

        Raises:
            OutputError: the file cannot be read.
        """
        words = np.empty(0, np.uint64)
        with _reading(path):
            words = np.fromfile(path, np.uint64)
        keys = words[: len(words) // 2 * 2].reshape(-1, 2)
        index = keys[:, 0] & _HEAD
        index |= np.arange(len(keys), dtype=np.uint64)
        if wanted is not None:
            index = index[: len(wanted)][wanted[: len(keys)]]
        index.sort()
        return cls(keys, index)

    def __len__(self) -> int:
        """How many rows can be found."""
        return len(self._index)

    def find(self, keys: bytes) -> NDArray[np.int64]:
        """The rows that have these keys, given end to end; -1 where there is none.

        Of several rows with one key it is the first. Shape (number of keys,).
        """
        sought = np.frombuffer(keys, np.uint64).reshape(-1, 2)
        heads = sought[:, 0] & _HEAD
        found = np.full(len(sought), -1, np.int64)
        pending = np.argsort(heads)  # to search in order is several times as fast
        at = np.searchsorted(self._index, heads[pending])
        while pending.size:  # a second time only for rows whose keys start alike
            inside = at < len(self._index)
            pending, at = pending[inside], at[inside]
            alike = self._index[at] & _HEAD == heads[pending]
            pending, at = pending[alike], at[alike]
            rows = self._index[at] & _ROW
            same = (self._keys[rows] == sought[pending]).all(axis=1)
            found[pending[same]] = rows[same]
            pending, at = pending[~same], at[~same] + 1
        return found


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Nothing is read from a file that is not there; what cannot be read is reported."""
    try:
        yield
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(
            f"{path} cannot be read: {error.strerror}. Check the disk and the folder's "
            "permissions, then run again"
        ) from error
