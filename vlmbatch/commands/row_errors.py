"""The rows that cannot be answered, as ``validate`` and ``features`` report them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

from vlmbatch.commands.urls import is_url
from vlmbatch.errors import OutputError, RowError
from vlmbatch.remote.filesystem import open_filesystem

if TYPE_CHECKING:
    from vlmbatch.stats import RunStats
    from vlmbatch.types import Row

_MAX_EXAMPLES = 3


@contextmanager
def local_errors(destination: str | None, stats: RunStats) -> Iterator[str | None]:
    """``destination``, or in the place of a URL a file of this machine, which is put in the end.

    Raises:
        UsageError: something else was put there meanwhile.
        RemoteError: the store refuses, or cannot be reached.
    """
    if destination is None or not is_url(destination):
        yield destination
        return
    from vlmbatch.output.remote.stored_file import StoredFile
    from vlmbatch.remote.puts import allow_slow_puts

    place = open_filesystem(destination)
    allow_slow_puts(place)
    with StoredFile.at(f"--errors {destination}", place).written(stats) as file:
        yield str(file)


class RowErrors:
    """Counts errors in ``stats``, keeps a few ``examples`` of each code, and writes all of them.

    They are JSON lines in the file ``destination``: standard output for ``-``, nowhere for None.

    Raises:
        OutputError: the file cannot be opened or written.
    """

    def __init__(self, stats: RunStats, destination: str | None) -> None:
        self._stats = stats
        self._destination = destination
        self._file: TextIO | None = None
        self.examples: dict[str, list[str]] = {}  # by code: which row, and what is wrong

    def __enter__(self) -> Self:
        if self._destination == "-":
            self._file = sys.stdout
        elif self._destination is not None:
            try:  # flushed by lines, so that a full disk is met in add
                self._file = Path(self._destination).open("w", buffering=1, encoding="utf-8")
            except OSError as error:
                raise self._failed(error) from error
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is None or self._file is sys.stdout:
            return
        try:
            self._file.close()
        except OSError as error:  # what a failed write left in the buffer fails once more
            raise self._failed(error) from error

    def add(self, row: Row, error: RowError) -> None:
        self._stats.errors[error.code] += 1
        examples = self.examples.setdefault(error.code, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(f"{row.file}:{row.line} (id {row.id}): {error.message}")
        if self._file is not None:
            self._write(self._file, row, error)

    def _write(self, file: TextIO, row: Row, error: RowError) -> None:
        fields = {
            "row_index": row.index,
            "id": row.id,
            "file": row.file,
            "line": row.line,
            "error_code": error.code,
            "error_message": error.message,
        }
        try:
            file.write(json.dumps(fields) + "\n")
        except OSError as failure:
            raise self._failed(failure) from failure

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self._destination}: {error.strerror}")
