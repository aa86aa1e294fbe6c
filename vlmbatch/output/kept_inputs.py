"""Prompts and images beside their answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from vlmbatch.output.parquet_writer import ResultWriter
from vlmbatch.types import Result


class InputsWriter:
    """Adds the columns of ``inputs``, a row of the manifest each from the first on, to results.

    They are read once more when their row is written: an image waits nowhere beside its answer,
    neither in memory nor in the journal.

    Raises:
        ManifestError: by ``write``, when the manifest cannot be read, or has changed.
    """

    def __init__(self, writer: ResultWriter, inputs: Iterator[dict[str, Any]]) -> None:
        self._writer = writer
        self._inputs = enumerate(inputs)

    def write(self, result: Result) -> None:
        index, values = next(self._inputs)
        assert index == result.index, f"row {result.index}, expected {index}"
        self._writer.write(replace(result, extra={**result.extra, **values}))

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        self._writer.abort()
