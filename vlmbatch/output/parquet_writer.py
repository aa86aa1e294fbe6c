"""Writing results: the interface, and the Parquet file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from vlmbatch.durable.durable_file import FILES, DurableFile, FileSystem, output_error, publish
from vlmbatch.errors import OutputError
from vlmbatch.manifest.arrow_values import shown
from vlmbatch.manifest.json_text import dump_json
from vlmbatch.manifest.parquet_file import read_footer
from vlmbatch.manifest.schema import (
    RESULT_SCHEMA,
    detail_name,
    detail_value,
    is_json_text,
    result_values,
)
from vlmbatch.manifest.stored_types import UNFIT, to_array
from vlmbatch.types import Result

_ROW_GROUP_ROWS = 16_384
_ROW_GROUP_BYTES = 64 * 2**20

logger = logging.getLogger(__name__)


class ResultWriter(Protocol):
    """Where results go, in the order in which they are to stand."""

    def write(self, result: Result) -> None:
        """Take one result."""
        ...

    def close(self) -> None:
        """Make everything written visible and durable."""
        ...

    def abort(self) -> None:
        """Give up; what only a complete output may show disappears."""
        ...


class ParquetTableWriter:
    """One Parquet file of tables, under a temporary name beside ``path`` until ``close``.

    ``temporary`` is that name, if the caller makes sure that no other process uses it: what a crash
    leaves there is then written over. A table is a row group.

    Raises:
        OutputError: by every method, when the file system refuses (full, read-only, gone).
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        *,
        temporary: Path | None = None,
        files: FileSystem = FILES,
    ) -> None:
        self._path = path
        self._temporary = temporary or path.with_name(f".vlmbatch-{secrets.token_hex(6)}.tmp")
        self._files = files
        self._num_rows = 0
        try:
            self._file = DurableFile(self._temporary, files)
        except OSError as error:
            raise output_error(path, error) from error
        try:
            self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")
        except (pa.ArrowException, OSError) as error:
            self._discard()
            raise output_error(path, error) from error

    def write(self, table: pa.Table) -> None:
        """Append the rows of ``table``, which has the columns of the schema."""
        try:
            self._writer.write_table(table)
        except (pa.ArrowException, OSError) as error:
            raise output_error(self._path, error) from error
        self._num_rows += table.num_rows

    def close(self) -> None:
        """Check the file by its footer, and give it its name."""
        try:
            self._writer.close()
            self._file.sync()
            self._file.close()
            written = read_footer(self._temporary).num_rows
            if written != self._num_rows:
                raise OutputError(
                    f"{self._path}: {self._num_rows} rows were written but {written} read back: "
                    "the file system lost data"
                )
            publish(self._temporary, self._path, "output", self._files)
        except (pa.ArrowException, OSError) as error:
            raise output_error(self._path, error) from error

    def abort(self) -> None:
        """Remove the temporary file; a file that had the final name before stays as it was."""
        with contextlib.suppress(pa.ArrowException, OSError):  # the file is thrown away
            self._writer.close()
        self._discard()

    def _discard(self) -> None:
        self._file.close()
        with contextlib.suppress(OSError):  # it may have its final name, or stay where it is
            self._files.unlink(self._temporary)


class ParquetResultWriter:
    """One Parquet file of results, written as ``ParquetTableWriter`` does.

    ``first_row``: where in the manifest the result with index 0 stands. Holds at most one row group
    in memory, bounded by rows and bytes.

    Raises:
        OutputError: by every method, when the file system refuses (full, read-only, gone).
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        metadata: Mapping[str, str],
        *,
        first_row: int = 0,
        temporary: Path | None = None,
        files: FileSystem = FILES,
    ) -> None:
        own = {name: value.encode("utf-8", "backslashreplace") for name, value in metadata.items()}
        self._schema = schema.with_metadata({**(schema.metadata or {}), **own})
        self._first_row = first_row
        self._results: list[Result] = []
        self._bytes = 0
        self._tables = ParquetTableWriter(path, self._schema, temporary=temporary, files=files)

    def write(self, result: Result) -> None:
        if self._first_row:
            result = replace(result, index=self._first_row + result.index)
        self._results.append(result)
        self._bytes += _approximate_bytes(result)
        if len(self._results) >= _ROW_GROUP_ROWS or self._bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the rest, check the file by its footer, and give it its name."""
        self._flush()
        self._tables.close()

    def abort(self) -> None:
        """Remove the temporary file; a file that had the final name before stays as it was."""
        self._tables.abort()

    def _flush(self) -> None:
        if self._results:
            self._tables.write(results_table(self._results, self._schema))
            self._results = []
            self._bytes = 0


def row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of ``tables`` in pieces of a row group each; holds one of these, and a table."""
    waiting: list[pa.Table] = []
    num_rows = num_bytes = 0
    for table in tables:
        while num_rows + table.num_rows >= _ROW_GROUP_ROWS:
            missing = _ROW_GROUP_ROWS - num_rows
            yield pa.concat_tables([*waiting, table.slice(0, missing)])
            table = table.slice(missing)
            waiting, num_rows, num_bytes = [], 0, 0
        if table.num_rows:
            waiting.append(table)
            num_rows += table.num_rows
            num_bytes += table.nbytes
        if num_bytes >= _ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting, num_rows, num_bytes = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting)


def results_table(results: list[Result], schema: pa.Schema) -> pa.Table:
    """Results as Arrow columns; pass-through values come from ``Result.extra``."""
    rows = [result_values(result) for result in results]
    columns = []
    for position, field in enumerate(schema):
        if position < len(RESULT_SCHEMA):
            values = [row[RESULT_SCHEMA.names[position]] for row in rows]
        elif (detail := detail_name(field)) is not None:
            values = [detail_value(result, detail) for result in results]
        else:
            values = [result.extra.get(field.name) for result in results]
            if is_json_text(field):
                values = [None if value is None else dump_json(value) for value in values]
        columns.append(_array(values, field))
    return pa.Table.from_arrays(columns, schema=schema)


def _array(values: list[Any], field: pa.Field) -> pa.Array:
    try:
        return to_array(values, field.type)
    except UNFIT:
        return to_array([_fitted(value, field) for value in values], field.type)


def _fitted(value: Any, field: pa.Field) -> Any:
    """The value, or its nearest of the column's type; a row is never lost for one value."""
    for candidate in _candidates(value, field.type):
        try:
            to_array([candidate], field.type)
        except UNFIT:
            continue
        return candidate
    logger.warning(
        'column "%s": %s does not fit the type %s; null is written',
        field.name,
        shown(value),
        field.type,
    )
    return None


def _candidates(value: Any, data_type: pa.DataType) -> Iterator[Any]:
    yield value
    if isinstance(value, str):  # lone surrogates, from a file name that is not UTF-8
        yield value.encode("utf-8", "backslashreplace").decode()
    elif isinstance(value, int) and pa.types.is_floating(data_type):
        with contextlib.suppress(OverflowError):
            yield float(value)


def _approximate_bytes(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value) + 8
    if isinstance(value, Result):
        return (
            64
            + _approximate_bytes(value.text)
            + _approximate_bytes(value.error_message)
            + _approximate_bytes(value.extra)
            + _approximate_bytes(value.details)
        )
    if isinstance(value, dict):
        return sum(map(_approximate_bytes, value.values()), 8)
    if isinstance(value, list | tuple):
        return sum(map(_approximate_bytes, value), 8)
    return 8
