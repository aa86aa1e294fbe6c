"""JSONL manifests: one JSON object a line, in UTF-8."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Collection, Generator, Iterator
from itertools import islice
from typing import Any, BinaryIO, NoReturn

from vlmbatch.errors import ErrorCode, ManifestError, RowError
from vlmbatch.manifest.lines import Hasher, Line, read_lines
from vlmbatch.manifest.scan import Record, Scan
from vlmbatch.manifest.second_pass import StreamDigest, same_stream

MAX_NESTING = 64
_UTF16 = "UTF-16: iconv -f utf-16 -t utf-8 makes UTF-8 of it"
_OTHER_KINDS = {
    codecs.BOM_UTF16_LE: _UTF16,
    codecs.BOM_UTF16_BE: _UTF16,
    b"\x1f\x8b": "gzip: let the name end in .jsonl.gz, or gzip -dc makes lines of it",
    b"\x28\xb5\x2f\xfd": "zstd: let the name end in .jsonl.zst, or zstd -dc makes lines of it",
    b"PAR1": "Parquet: it is read from a file whose name ends in .parquet",
}


class NotAnObjectError(RowError):
    """The line is no JSON object: on the first line, a sign that the file is no JSONL."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.MANIFEST_LINE_INVALID, message)


class JsonlFile:
    """One JSONL file, read from its start by each pass.

    ``open_stream`` returns the decompressed bytes. After ``scan`` all passes end where it did.
    """

    def __init__(self, name: str, open_stream: Callable[[], BinaryIO], max_line_bytes: int) -> None:
        self.name = name
        self._open_stream = open_stream
        self._max_line_bytes = max_line_bytes
        self._seen: StreamDigest | None = None  # by scan

    def scan(self, scan: Scan, limit: int | None) -> str:
        """Gather ids and columns of at most ``limit`` rows; the digest of the bytes they take.

        Raises:
            ManifestError: the file cannot be read, its first line is not a JSON object, or a
                column's name is reserved.
        """
        seen = StreamDigest()
        rows = self._parsed(seen) if limit != 0 else ()
        for count, (line, values) in enumerate(rows, 1):
            scan.add_row(values)
            if isinstance(values, dict):
                scan.extras.add_values(values, len(line.raw), f"{self.name}:{line.number}")
            if count == limit:
                break
        self._seen = seen
        return seen.hexdigest()

    def records(
        self, columns: Collection[str] | None = None, skip: int = 0
    ) -> Generator[Record, None, None]:
        """Yield (line number, object or what is wrong with the line); all columns always.

        The first ``skip`` rows are read, and not parsed.

        Raises:
            ManifestError: as ``scan``, or the file is no longer what it has seen.
        """
        for line, values in self._parsed(None, skip):
            yield line.number, values

    def _parsed(
        self, hasher: Hasher | None, skip: int = 0
    ) -> Iterator[tuple[Line, dict[str, Any] | RowError]]:
        stream = self._open_stream()
        if self._seen is not None:
            stream = same_stream(stream, self._seen, self.name)
        first = skip == 0
        with stream:
            lines = read_lines(stream, self.name, self._max_line_bytes, hasher)
            for line in islice(lines, skip, None):
                values: dict[str, Any] | RowError
                try:
                    values = self._parse(line)
                except RowError as error:
                    if first and isinstance(error, NotAnObjectError):
                        raise ManifestError(
                            f"{error.message}. A JSONL manifest has one JSON object a line, such "
                            f'as {{"prompt": "...", "image": "a.jpg"}}{_remedy(line.raw)}'
                        ) from error
                    values = error
                first = False
                yield line, values

    def _parse(self, line: Line) -> dict[str, Any]:
        where = f"{self.name}:{line.number}"
        if not line.complete:
            message = f"{where}: the line is longer than the limit of {self._max_line_bytes} bytes"
            if not line.raw.lstrip().startswith(b"{"):
                raise NotAnObjectError(f"{message} and is not a JSON object")
            raise RowError(ErrorCode.MANIFEST_LINE_INVALID, message)
        return parse_object(line.raw, where)


def _remedy(first: bytes) -> str:
    """What makes lines of objects of a file that begins in another way."""
    for magic, remedy in _OTHER_KINDS.items():
        if first.startswith(magic):
            return f". This is {remedy}"
    if first.lstrip().startswith(b"["):
        return ". jq -c '.[]' makes such lines of an array"
    return ". jq -c . puts an object on one line" if first.lstrip().startswith(b"{") else ""


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """Parse one line. Strings in the result can all be encoded as UTF-8.

    Raises:
        NotAnObjectError: not JSON, or another value than an object.
        RowError: an object, but with invalid UTF-8, lone surrogates, a key twice, a number that
            float64 does not hold, or nested too deeply.
    """
    values = _decoded(raw, where)
    if not isinstance(values, dict):
        raise NotAnObjectError(f"{where}: not a JSON object but {_kind(values)}")
    _check(values, raw, where)
    return values


def parse_value(raw: bytes, where: str) -> Any:
    """As ``parse_object``, of a value of any kind.

    Raises:
        RowError: not JSON, or as ``parse_object``.
    """
    value = _decoded(raw, where)
    _check(value, raw, where)
    return value


def _decoded(raw: bytes, where: str) -> Any:
    raw = raw.rstrip(b"\r\n")  # or an error at the end would count as column 1 of a next line
    try:
        return _DECODER.decode(raw.decode())
    except UnicodeDecodeError as error:
        message = f"{where}: not UTF-8: byte {raw[error.start]:#04x} at byte {error.start + 1}"
        if not raw.lstrip().startswith(b"{"):
            raise NotAnObjectError(message) from error
        raise RowError(ErrorCode.MANIFEST_LINE_INVALID, message) from error
    except json.JSONDecodeError as error:
        raise NotAnObjectError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        if not raw.lstrip().startswith(b"{"):
            raise NotAnObjectError(f"{where}: not a JSON object but nested arrays") from error
        raise _too_deep(where) from error
    except ValueError as error:  # NaN, 1e400, a key twice, an integer of thousands of digits
        raise RowError(ErrorCode.MANIFEST_LINE_INVALID, f"{where}: {error}") from error


def _check(value: Any, raw: bytes, where: str) -> None:
    if raw.count(b"{") + raw.count(b"[") > MAX_NESTING and _nesting(value) > MAX_NESTING:
        raise _too_deep(where)
    if b"\\ud" in raw or b"\\uD" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise RowError(
                ErrorCode.MANIFEST_LINE_INVALID,
                f"{where}: a lone surrogate (half of a \\uD8xx\\uDCxx pair) is not a character",
            ) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON: write null")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(
            f"the number {digits:.40} is beyond a float64's range: write it as a string"
        )
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key "{twice:.80}" is twice in one object: which value counts?')
    return values


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique
)


def _too_deep(where: str) -> RowError:
    return RowError(
        ErrorCode.MANIFEST_LINE_INVALID, f"{where}: nested more than {MAX_NESTING} levels deep"
    )


def _nesting(value: Any) -> int:
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [
            child for item in level for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "an array"
    return "null" if value is None else f"a {_KINDS[type(value)]}"


_KINDS = {bool: "boolean", int: "number", float: "number", str: "string"}
