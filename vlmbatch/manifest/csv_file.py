"""CSV and TSV manifests: a header of column names, then a row a record (RFC 4180), in UTF-8.

pyarrow's reader tells neither the line of a row nor, where one cell of a block is not UTF-8, any of
its rows; and it makes 7 of 007.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing
from typing import BinaryIO

from vlmbatch.errors import ErrorCode, ManifestError, RowError
from vlmbatch.manifest.columns import (
    CHOICES_COLUMN,
    RESOLUTION_COLUMNS,
    SAMPLING_COLUMNS,
    Columns,
)
from vlmbatch.manifest.jsonl import parse_value
from vlmbatch.manifest.lines import Hasher, Line, read_lines
from vlmbatch.manifest.scan import Record, Scan
from vlmbatch.manifest.second_pass import StreamDigest, same_stream
from vlmbatch.manifest.text_columns import TextColumn, number

_ESCAPED = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8
_UNCLOSED = "a quote opens in the row and is not closed before the end of the file"
_NUMBERS = frozenset({*SAMPLING_COLUMNS, *RESOLUTION_COLUMNS, "n", "best_of_retries"})


class CsvFile:
    """One file, whose cells ``delimiter`` divides; a ``;`` does in a CSV whose header has no comma.

    ``open_stream`` returns the decompressed bytes. A row, of several lines where cells have line
    ends in quotes, has at most ``max_row_bytes``. An empty prompt is ``empty_prompt``, any other
    empty cell null. After ``scan`` all passes end where it did.
    """

    def __init__(
        self,
        name: str,
        open_stream: Callable[[], BinaryIO],
        delimiter: str,
        columns: Columns,
        max_row_bytes: int,
        empty_prompt: str | None = "",
    ) -> None:
        self.name = name
        self._open_stream = open_stream
        self._delimiter = delimiter
        self._inputs = columns
        self._lists = {columns.image, "stop"}
        if CHOICES_COLUMN in columns.asked:
            self._lists.add(CHOICES_COLUMN)
        self._numbers = _NUMBERS & columns.inputs
        self._max_row_bytes = max_row_bytes
        self._empty_prompt = empty_prompt
        self._seen: StreamDigest | None = None  # by scan
        self._columns: dict[str, TextColumn] = {}

    def scan(self, scan: Scan, limit: int | None) -> str:
        """Gather ids and columns of at most ``limit`` rows; the digest of the bytes they take.

        Raises:
            ManifestError: the file cannot be read, or its header gives no names of columns.
        """
        seen = StreamDigest()
        rows: Iterable[tuple[int, dict[str, str] | RowError]] = ()
        if limit != 0:
            rows = self._rows(seen)
        for count, (line, cells) in enumerate(rows, 1):
            if isinstance(cells, RowError):
                scan.add_row(cells)
            else:
                where = f"{self.name}:{line}"
                self._columns |= scan.extras.add_cells(cells, where)
                values = self._values(cells, where)
                scan.add_row(values)
                if isinstance(values, dict) and (scan.columns.kept or scan.extras.partition):
                    kept = {name: values[name] for name in scan.columns.kept if name in values}
                    scan.extras.add_values(kept, sum(map(len, cells.values())), where)
            if count == limit:
                break
        self._seen = seen
        return seen.hexdigest()

    def records(self, columns: Collection[str] | None = None, skip: int = 0) -> Iterator[Record]:
        """Yield (line on which the row begins, values or what is wrong with it); all columns.

        Raises:
            ManifestError: as ``scan``, or the file is no longer what it has seen.
        """
        with closing(self._rows(None)) as rows:
            for count, (line, cells) in enumerate(rows):
                if count < skip:
                    continue
                if isinstance(cells, RowError):
                    yield line, cells
                else:
                    yield line, self._values(cells, f"{self.name}:{line}")

    def _rows(
        self, hasher: Hasher | None
    ) -> Generator[tuple[int, dict[str, str] | RowError], None, None]:
        stream = self._open_stream()
        if self._seen is not None:
            stream = same_stream(stream, self._seen, self.name)
        csv.field_size_limit(sys.maxsize)  # rows have a limit here
        with stream:
            raw = read_lines(stream, self.name, self._max_row_bytes, hasher, with_blank=True)
            lines = _RowLines(raw, self.name, self._max_row_bytes)
            header = self._header(lines)
            if header is None:
                return
            reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
            while True:
                line = lines.start_row()
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    cause = _UNCLOSED if lines.at_end else str(error)
                    yield (
                        line,
                        self._invalid(line, f"{cause} (the row ends in line {lines.number})"),
                    )
                    continue
                except RowError as error:
                    yield line, error
                    continue
                if not cells or (lines.is_blank and len(cells) == 1):
                    continue
                yield line, self._checked(header, cells, line)

    def _header(self, lines: _RowLines) -> list[str] | None:
        """The columns' names; None of an empty file."""
        line = lines.start_row()
        text = next(lines, "")
        while text.isspace():
            line = lines.start_row()
            text = next(lines, "")
        if not text:
            return None
        where = f"{self.name}:{line}"
        if _ESCAPED.search(text) or "\0" in text:
            raise ManifestError(
                f"{where}: the header is not UTF-8: save the file as CSV in UTF-8 (in Excel, "
                '"CSV UTF-8")'
            )
        if self._delimiter == "," and "," not in text and ";" in text:
            self._delimiter = ";"
        try:
            names = next(csv.reader([text], delimiter=self._delimiter, strict=True))
        except csv.Error as error:
            raise ManifestError(f"{where}: the header cannot be read: {error}") from error
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ManifestError(f'{where}: two columns are called "{repeated}"')
        return names

    def _checked(self, header: list[str], cells: list[str], line: int) -> dict[str, str] | RowError:
        if len(cells) != len(header):
            return self._invalid(
                line,
                f"the row has {len(cells)} cells, and the header has {len(header)}: a cell with "
                f"{self._delimiter!r} or a line end in it must be in quotes",
            )
        row = dict(zip(header, cells, strict=True))
        for name, cell in row.items():
            if bad := _ESCAPED.search(cell):
                byte = ord(bad[0]) - 0xDC00
                return self._invalid(line, f'column "{name}" is not UTF-8: byte {byte:#04x}')
        return row

    def _values(self, cells: dict[str, str], where: str) -> dict[str, object] | RowError:
        try:
            return {name: self._value(name, cell, where) for name, cell in cells.items()}
        except RowError as error:
            return error

    def _value(self, name: str, cell: str, where: str) -> object:
        if name == self._inputs.prompt:
            return cell or self._empty_prompt
        if not cell:
            return None
        if name in self._numbers and (value := number(cell)) != cell:
            return value
        if name in self._lists and cell.startswith("["):
            return parse_value(cell.encode(), f'{where}: column "{name}"')
        column = self._columns.get(name)
        return cell if column is None else column.value(cell)

    def _invalid(self, line: int, message: str) -> RowError:
        return RowError(ErrorCode.MANIFEST_LINE_INVALID, f"{self.name}:{line}: {message}")


class _RowLines:
    """Lines as text, those of one row bounded. May go on after an error.

    Bytes that are not UTF-8 become lone surrogates.
    """

    def __init__(self, lines: Iterator[Line], name: str, max_bytes: int) -> None:
        self._lines = lines
        self._name = name
        self._max_bytes = max_bytes
        self._first = 1
        self._num_bytes = 0
        self.number = 0  # of the latest
        self.is_blank = False  # the latest, and without quotes
        self.at_end = False

    def start_row(self) -> int:
        """A row begins; returns the number of its first line."""
        self._num_bytes = 0
        self._first = self.number + 1
        return self._first

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = next(self._lines)
        except StopIteration:
            self.at_end = True
            raise
        self.number = line.number
        self.is_blank = line.raw.isspace()
        self._num_bytes += len(line.raw)
        if not line.complete or self._num_bytes > self._max_bytes:
            where = (
                f"line {self._first}"
                if self._first == line.number
                else (
                    f"lines {self._first} to {line.number}, where a quote opens and is not closed"
                )
            )
            raise RowError(
                ErrorCode.MANIFEST_LINE_INVALID,
                f"{self._name}:{self._first}: the row is longer than the limit of "
                f"{self._max_bytes} bytes ({where})",
            )
        return line.raw.decode(errors="surrogateescape")
