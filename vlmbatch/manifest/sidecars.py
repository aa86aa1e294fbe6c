"""Columns from the files beside an image: text, or JSON where the name says so."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.manifest.jsonl import parse_value


def read_sidecars(image: Path, suffixes: tuple[str, ...], max_bytes: int) -> dict[str, Any]:
    """The columns of an image, by suffix without its first dot; None where there is no file.

    Raises:
        RowError: a file that cannot be read, is larger, or is not what its name says.
    """
    return {
        suffix.removeprefix("."): _read(image.with_suffix(suffix), max_bytes) for suffix in suffixes
    }


def column_value(name: str, data: bytes, where: str) -> Any:
    """What a file's content is in a column: of ``.json`` its value, else text without a line end.

    Raises:
        RowError: not UTF-8, or no JSON.
    """
    if name.lower().endswith(".json"):
        return parse_value(data.removeprefix(b"\xef\xbb\xbf"), where)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _invalid(f"{where}: not UTF-8: byte {data[error.start]:#04x}") from error
    return text.removesuffix("\n").removesuffix("\r")


def _read(path: Path, max_bytes: int) -> Any:
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _invalid(f"{path}: not a file")
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _invalid(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise _invalid(f"{path}: longer than the limit of {max_bytes} bytes")
    return column_value(path.name, data, str(path))


def _invalid(message: str) -> RowError:
    return RowError(ErrorCode.MANIFEST_LINE_INVALID, message)
