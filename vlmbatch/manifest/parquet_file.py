"""Opening Parquet files by any name that the file system allows."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_READ_BYTES = 2**20


class OwnedParquetFile(pq.ParquetFile):  # type: ignore[misc]  # pyarrow has no types
    """A Parquet file read through a small buffer; pages of it are held, not column chunks.

    Columns of the paths ``dictionaries`` are read as dictionary arrays. ``source`` is closed with
    it, also where it is no Parquet file.

    Raises:
        ArrowException: it is none.
        OSError: without ``errno``, the same.
    """

    def __init__(self, source: pa.NativeFile, dictionaries: Collection[str] = ()) -> None:
        try:
            # By default pyarrow would hold whole column chunks of a row group.
            super().__init__(
                source,
                pre_buffer=False,
                buffer_size=_READ_BYTES,
                read_dictionary=list(dictionaries),
            )
        except BaseException:
            source.close()
            raise

    def close(self, force: bool = True) -> None:
        super().close(force=True)  # the source is ours too


class LocalParquetFile(OwnedParquetFile):
    """The file at ``path``.

    Raises:
        ArrowException: it is no Parquet file.
        OSError: it cannot be opened; without ``errno``, it is no Parquet file.
    """

    def __init__(self, path: Path) -> None:
        # pyarrow takes a path in text for UTF-8, and one with a colon for a URI.
        super().__init__(pa.OSFile(os.fsencode(path)))


def read_footer(path: Path) -> pq.FileMetaData:
    """The footer of the file at ``path``; raises as ``LocalParquetFile``."""
    with LocalParquetFile(path) as file:
        return file.metadata
