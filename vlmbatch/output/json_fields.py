"""Fields of answers beside the answers."""

from __future__ import annotations

from dataclasses import replace

from vlmbatch.manifest.json_columns import JsonColumns
from vlmbatch.output.parquet_writer import ResultWriter
from vlmbatch.types import Result


class JsonFieldsWriter:
    """Adds the values of ``columns`` to results, and ``json_error``.

    Only when their row is written: the journal holds the text alone, and an answer that is kept of
    an earlier run is read as any other.
    """

    def __init__(self, writer: ResultWriter, columns: JsonColumns) -> None:
        self._writer = writer
        self._columns = columns

    def write(self, result: Result) -> None:
        values, error = self._columns.values(result)
        details = {**result.details, "json_error": error}
        self._writer.write(replace(result, extra={**values, **result.extra}, details=details))

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        self._writer.abort()
