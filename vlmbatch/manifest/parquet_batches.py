"""The batches in which a row group is read, so that few megabytes are decoded at a time.

A footer's sizes are of encoded data, and equal values of a column chunk are encoded once, in its
dictionary: thousands of questions about one photo take the room of the photo.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

_BATCH_BYTES = 8 * 2**20  # of Python values, by estimate
_BATCH_ROWS = 4096
# What a batch may take if each of its rows has the longest value that a dictionary holds.
_MAX_BATCH_BYTES = 64 * 2**20
# Each batch comes with a copy of the dictionaries: of so many bytes that does not matter.
_SMALL_DICTIONARY = 2**20
# Of pages that refer to a dictionary: for each value its index and levels, and some headers.
_INDEX_BYTES = 8
_HEADER_BYTES = 2**16
_OBJECT_BYTES = 32  # of a Python object, about
_POINTER_BYTES = 8
_MAX_FILES = 4

# What is to be read as dictionaries, to the file so opened.
OpenFile = Callable[[Collection[str]], pq.ParquetFile]


@dataclass(frozen=True, slots=True)
class _Form:
    """How a row group is read: the paths of its columns that come as dictionaries, the bytes that
    these may have (by the columns' places), and the rows of a batch."""

    shared: frozenset[str]
    max_dictionaries: dict[int, int]
    max_rows: int


class BatchReader:
    """Reads row groups of the Parquet file that ``open_file`` opens. Not thread-safe."""

    def __init__(self, open_file: OpenFile) -> None:
        self._open_file = open_file
        self._files: dict[frozenset[str], pq.ParquetFile] = {}
        file = self._opened(frozenset())
        self.metadata: pq.FileMetaData = file.metadata
        self.names: list[str] = file.schema_arrow.names
        schema = self.metadata.schema
        columns = [schema.column(place) for place in range(self.metadata.num_columns)]
        self._paths = [column.path for column in columns]
        self._bytes = {
            column.path for column in columns if column.logical_type.type in ("NONE", "STRING")
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def batches(self, group: int, names: Collection[str]) -> Iterator[pa.RecordBatch]:
        """The row group's batches of these columns (or of fields of theirs, as ``image.path``).

        Binary and text come as dictionary arrays where all of a chunk's values are in its
        dictionary and it is small, or most are there more than once. The first batch has one row,
        each further one at most twice the rows of the one before.

        Raises:
            ArrowException, OSError: the row group cannot be read, or no further.
        """
        places = [place for place, path in enumerate(self._paths) if _is_of(path, names)]
        wanted = [self.metadata.row_group(group).column(place) for place in places]
        # Batches have their columns in the order of these names. A chunk has its path as well,
        # which in a damaged file is any bytes.
        columns = [self._paths[place] for place in places]
        form = self._form(group, columns, wanted)
        if max(form.max_dictionaries.values(), default=0) > _BATCH_BYTES:
            pa.default_memory_pool().release_unused()  # what the look at the dictionaries took
        file = self._opened(form.shared)
        rows_left = self.metadata.row_group(group).num_rows
        bytes_left = sum(
            _OBJECT_BYTES * chunk.num_values
            + (0 if path in form.shared else chunk.total_uncompressed_size)
            for path, chunk in zip(columns, wanted, strict=True)
        )
        batches = file.iter_batches(1, row_groups=[group], columns=columns)
        while (batch := next(batches, None)) is not None:
            leaves = _leaves(batch)
            for place, most in form.max_dictionaries.items():
                if leaves[place].dictionary.nbytes > most:
                    raise pa.ArrowInvalid("a column chunk holds more than the footer declares")
            num_bytes = sum(map(_python_bytes, leaves))
            rows_left -= batch.num_rows
            bytes_left -= num_bytes
            # As those so far, or, if the footer says that most is still to come, as these.
            row_bytes = max(num_bytes // batch.num_rows, bytes_left // max(1, rows_left)) + 1
            rows = max(1, min(2 * batch.num_rows, form.max_rows, _BATCH_BYTES // row_bytes))
            file.reader.set_batch_size(rows)
            leaving = [batch]
            del batch, leaves
            yield leaving.pop()  # it is gone before the next one is read

    def _form(self, group: int, columns: list[str], wanted: list[Any]) -> _Form:
        """Look at the dictionaries, which come with the first row."""
        chunks = {
            place: chunk
            for place, (path, chunk) in enumerate(zip(columns, wanted, strict=True))
            if path in self._bytes and _may_share(chunk)
        }
        if not chunks:  # a page of images may be the whole chunk: it is not read for nothing
            return _Form(frozenset(), {}, _BATCH_ROWS)
        file = self._opened(frozenset(columns[place] for place in chunks))
        batch = next(file.iter_batches(1, row_groups=[group], columns=columns), None)
        if batch is None:
            return _Form(frozenset(), {}, _BATCH_ROWS)
        leaves = _leaves(batch)
        longest, max_dictionaries = 1, dict[int, int]()
        for place, chunk in chunks.items():
            dictionary = leaves[place].dictionary
            if _is_shared(dictionary, chunk):
                max_dictionaries[place] = dictionary.nbytes + _index_bytes(chunk)
            else:
                values_per_row = -(-chunk.num_values // self.metadata.row_group(group).num_rows)
                longest += max(1, values_per_row) * _longest(dictionary)
        shared = frozenset(columns[place] for place in max_dictionaries)
        max_rows = max(1, min(_BATCH_ROWS, _MAX_BATCH_BYTES // longest))
        return _Form(shared, max_dictionaries, max_rows)

    def _opened(self, paths: frozenset[str]) -> pq.ParquetFile:
        if paths not in self._files:
            while len(self._files) >= _MAX_FILES:
                self._files.pop(next(iter(self._files))).close()
            self._files[paths] = self._open_file(paths)
        return self._files[paths]


def _may_share(chunk: Any) -> bool:
    """Whether a column chunk has a dictionary of bytes."""
    return chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY"  # type: ignore[no-any-return]


def _is_of(path: str, names: Collection[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _is_shared(dictionary: pa.Array, chunk: Any) -> bool:
    """Whether all of a chunk's values are in its dictionary, and it is worth a copy a batch.

    A chunk may continue without its dictionary. Read as a dictionary array, it would add every
    further value to it.
    """
    size: int = dictionary.nbytes
    if chunk.total_uncompressed_size > size + _index_bytes(chunk):
        return False
    return size <= _SMALL_DICTIONARY or 2 * len(dictionary) <= int(chunk.num_values)


def _index_bytes(chunk: Any) -> int:
    return _HEADER_BYTES + _INDEX_BYTES * max(0, int(chunk.num_values))


def _longest(dictionary: pa.Array) -> int:
    import pyarrow.compute as pc

    return int(pc.max(pc.binary_length(dictionary)).as_py() or 0)


def _leaves(batch: pa.RecordBatch) -> list[pa.Array]:
    """The innermost arrays, in the order of the file's column chunks."""
    return [leaf for column in batch.columns for leaf in _leaves_of(column)]


def _leaves_of(array: pa.Array) -> Iterator[pa.Array]:
    if isinstance(array, pa.ExtensionArray):
        yield from _leaves_of(array.storage)
    elif pa.types.is_struct(array.type):
        for place in range(array.type.num_fields):
            yield from _leaves_of(array.field(place))
    elif pa.types.is_map(array.type):
        yield from _leaves_of(array.keys)
        yield from _leaves_of(array.items)
    elif array.type.num_fields:  # a list of some kind
        yield from _leaves_of(array.values)
    else:
        yield array


def _python_bytes(leaf: pa.Array) -> int:
    if pa.types.is_dictionary(leaf.type):
        return _POINTER_BYTES * len(leaf)
    return int(leaf.nbytes) + _OBJECT_BYTES * len(leaf)
