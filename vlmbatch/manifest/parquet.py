"""Parquet manifests, read a batch at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlmbatch.errors import ErrorCode, ManifestError, RowError
from vlmbatch.manifest.arrow_values import ValueReader
from vlmbatch.manifest.ids import may_hold_ids
from vlmbatch.manifest.parquet_batches import BatchReader
from vlmbatch.manifest.parquet_file import OwnedParquetFile
from vlmbatch.manifest.scan import Record, Scan
from vlmbatch.manifest.second_pass import SeenFile
from vlmbatch.manifest.stored_file import StoredFile

_ENCRYPTED_MAGIC = b"PARE"
# A group of equal rows takes some hundred bytes for a million of them. A footer that declares more
# is damaged, or made to fill the memory with error rows.
_MAX_ROWS_PER_BYTE = 10_000


class ParquetFile:
    """One Parquet file. Embedded images are held a few megabytes at a time."""

    def __init__(self, stored: StoredFile) -> None:
        self.name = stored.name
        self._stored = stored
        self._seen: SeenFile | None = None  # by scan

    def scan(self, scan: Scan, limit: int | None) -> str:
        """Gather ids and columns of at most ``limit`` rows, and the digest of the file's bytes.

        With a limit, the digest is of the bytes up to the last row group that it reaches.

        Raises:
            ManifestError: the file cannot be read, a column's or a field's name is reserved or
                used twice, or the ids are of a type that can be none.
        """
        state = self._stored.state()
        with self._open() as file:
            names = file.schema_arrow.names
            for name in names:
                if names.count(name) > 1:
                    raise ManifestError(f'{self.name}: two columns are called "{name}"')
            for field in file.schema_arrow:
                if repeated := _repeated_name(field.type):
                    raise ManifestError(
                        f'{self.name}: column "{field.name}": two fields of a struct are called '
                        f'"{repeated}": rename one of them'
                    )
                if field.name == scan.columns.id and not may_hold_ids(field.type):
                    raise ManifestError(
                        f'{self.name}: column "{field.name}" has the type {field.type}, which has '
                        "no text to be an id: cast it to a string, or name another column with "
                        "--id-column"
                    )
            scan.extras.add_schema(file.schema_arrow, self.name)
            num_rows = file.metadata.num_rows
            end = None
            if limit is not None and limit < num_rows:
                num_rows = limit
                end = _end_of_rows(file.metadata, limit)
            image_column = _image_name(file, scan.columns.image)
        records = self.records([scan.columns.id, image_column])
        for _, (_, values) in zip(range(num_rows), records, strict=False):
            scan.add_row(values)
        self._seen = SeenFile(self._stored, state, end)
        return self._seen.digest

    def records(self, columns: Collection[str] | None = None, skip: int = 0) -> Iterator[Record]:
        """Yield (row number from 1, values). A row group that cannot be read yields errors.

        A column of structs may be named with a field of it, as in ``image.path``. Row groups that
        lie in the first ``skip`` rows are not read.
        """
        with BatchReader(self._open) as reader:
            wanted = names = reader.names
            if columns is not None:
                wanted = [c for c in columns if c in names or c.rpartition(".")[0] in names]
            first = 1
            for group in range(reader.metadata.num_row_groups):
                next_first = first + reader.metadata.row_group(group).num_rows
                if not skip or skip < next_first - 1:
                    records = self._group_records(reader, group, wanted, first)
                    yield from islice(records, max(0, skip + 1 - first), None)
                first = next_first

    def _group_records(
        self, reader: BatchReader, group: int, names: list[str], first: int
    ) -> Iterator[Record]:
        metadata = reader.metadata.row_group(group)
        line, end = first, first + metadata.num_rows
        if not names:
            for number in range(line, end):
                yield number, {}
            return
        values = ValueReader()
        cause: Exception | str = "it ends there"
        try:
            for batch in reader.batches(group, names):
                self._check_unchanged()
                fields = batch.schema.names
                columns = [values.column(*column) for column in zip(fields, batch, strict=True)]
                del batch  # before the next one is read
                for row in zip(*columns, strict=True):
                    record = dict(zip(fields, row, strict=True))
                    yield line, self._checked(record, line)
                    line += 1
        except (pa.ArrowException, OSError) as error:
            cause = error
        self._check_unchanged()
        for number in range(line, end):
            yield (
                number,
                RowError(
                    ErrorCode.MANIFEST_LINE_INVALID,
                    f"{self.name}: row group {group} (rows {first} to {end - 1}) cannot be "
                    f"read from row {line} on: {cause}",
                ),
            )

    def _checked(self, record: dict[str, Any], line: int) -> dict[str, Any] | RowError:
        for name, value in record.items():
            if isinstance(value, UnicodeDecodeError):
                return RowError(
                    ErrorCode.MANIFEST_LINE_INVALID,
                    f'{self.name}: row {line}, column "{name}": not UTF-8: {value}',
                )
        return record

    def _open(self, dictionaries: Collection[str] = ()) -> pq.ParquetFile:
        """Open the file; columns of these paths are read as dictionary arrays."""
        source = self._stored.open_arrow()
        try:
            num_bytes = source.size()
            file = OwnedParquetFile(source, dictionaries)
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(f"{self.name}: {self._why_unreadable(error)}") from error
        except UnicodeDecodeError as error:
            raise ManifestError(f"{self.name}: a column's name is not UTF-8: {error}") from error
        if problem := _implausible(file.metadata, num_bytes):
            file.close()
            raise ManifestError(f"{self.name}: the footer is damaged: {problem}")
        return file

    def _why_unreadable(self, error: Exception) -> str:
        with self._stored.open() as file:
            magic = file.read(4)
        if magic == _ENCRYPTED_MAGIC:
            return "is encrypted: decrypt it first"
        return f"is not a complete Parquet file (no valid footer): {error}"

    def _check_unchanged(self) -> None:
        if self._seen is not None:
            self._seen.check()


def _image_name(file: pq.ParquetFile, column: str) -> str:
    """What to read of the image column to tell images apart: the labels of embedded ones, if any.

    The images themselves would have to be read from the disk twice.
    """
    metadata, labels = file.metadata, f"{column}.path"
    places = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path == labels]
    for place in places:
        for group in range(metadata.num_row_groups):
            found = metadata.row_group(group)
            statistics = found.column(place).statistics
            if statistics is None or statistics.null_count != found.num_rows:
                return labels
    return column


def _repeated_name(data_type: pa.DataType) -> str | None:
    """A name that two fields of a struct have, anywhere in the type."""
    if isinstance(data_type, pa.BaseExtensionType):
        data_type = data_type.storage_type
    fields = [data_type.field(place) for place in range(data_type.num_fields)]
    names: list[str] = [field.name for field in fields]
    if pa.types.is_struct(data_type) and len({*names}) < len(names):
        return next(name for name in names if names.count(name) > 1)
    return next(filter(None, (_repeated_name(field.type) for field in fields)), None)


def _implausible(metadata: pq.FileMetaData, num_bytes: int) -> str | None:
    """What is wrong with the numbers of rows that a footer declares."""
    groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if min(groups, default=0) < 0:
        return f"it declares a row group of {min(groups)} rows"
    if metadata.num_rows != sum(groups):
        return f"it declares {metadata.num_rows} rows, but {sum(groups)} in its row groups"
    if metadata.num_rows > _MAX_ROWS_PER_BYTE * num_bytes:
        return f"it declares {metadata.num_rows} rows in a file of {num_bytes} bytes"
    return None


def _end_of_rows(metadata: pq.FileMetaData, num_rows: int) -> int:
    """Where in the file the row groups that hold the first ``num_rows`` rows end, in bytes."""
    end = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        if num_rows <= 0:
            break
        for column in map(group.column, range(group.num_columns)):
            start = column.dictionary_page_offset or column.data_page_offset
            end = max(end, start + column.total_compressed_size)
        num_rows -= group.num_rows
    return end
