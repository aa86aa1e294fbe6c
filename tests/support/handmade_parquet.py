"""A Parquet file written by hand, so that it can declare what no writer would.

Format: https://parquet.apache.org/docs/file-format, its metadata in Thrift's compact protocol.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12
_BYTE_ARRAY, _PLAIN, _RLE = 6, 0, 3
CODECS = {"none": 0, "snappy": 1, "gzip": 2, "zstd": 6}


@dataclass(frozen=True, kw_only=True)
class Declared:
    """One row with the prompt "Hello.", and what the file says of it; None: the truth."""

    file_rows: int = 1
    group_rows: int = 1
    group_bytes: int = 100
    chunk_values: int = 1
    chunk_bytes: int | None = None
    page_values: int = 1
    page_bytes: int | None = None
    text_bytes: int = 6
    codec: str = "none"
    groups: int = 1


def handmade(declared: Declared) -> bytes:
    data = struct.pack("<I", declared.text_bytes) + b"Hello."
    page_header = _struct(
        (1, _I32, 0),
        (2, _I32, len(data) if declared.page_bytes is None else declared.page_bytes),
        (3, _I32, len(data)),
        (5, _STRUCT, _ints(declared.page_values, _PLAIN, _RLE, _RLE)),
    )
    page = page_header + data
    size = len(page) if declared.chunk_bytes is None else declared.chunk_bytes
    chunk = _struct(
        (1, _I32, _BYTE_ARRAY),
        (2, _LIST, _list(_I32, [_zigzag(_PLAIN), _zigzag(_RLE)])),
        (3, _LIST, _list(_BINARY, [_binary(b"prompt")])),
        (4, _I32, CODECS[declared.codec]),
        (5, _I64, declared.chunk_values),
        (6, _I64, size),
        (7, _I64, size),
        (9, _I64, 4),
    )
    column = _struct((2, _I64, 4), (3, _STRUCT, chunk))
    group = _struct(
        (1, _LIST, _list(_STRUCT, [column])),
        (2, _I64, declared.group_bytes),
        (3, _I64, declared.group_rows),
    )
    root = _struct((4, _BINARY, b"schema"), (5, _I32, 1))
    prompt = _struct((1, _I32, _BYTE_ARRAY), (3, _I32, 0), (4, _BINARY, b"prompt"), (6, _I32, 0))
    footer = _struct(
        (1, _I32, 2),
        (2, _LIST, _list(_STRUCT, [root, prompt])),
        (3, _I64, declared.file_rows),
        (4, _LIST, _list(_STRUCT, [group] * declared.groups)),
    )
    return b"PAR1" + page + footer + struct.pack("<I", len(footer)) + b"PAR1"


def _struct(*fields: tuple[int, int, int | bytes]) -> bytes:
    """Fields as (id, type, value), ids ascending."""
    encoded, last = b"", 0
    for number, kind, value in fields:
        encoded += bytes([(number - last) << 4 | kind])
        last = number
        if isinstance(value, int):
            encoded += _zigzag(value)
        else:
            encoded += _binary(value) if kind == _BINARY else value
    return encoded + b"\0"


def _ints(*values: int) -> bytes:
    return _struct(*((number, _I32, value) for number, value in enumerate(values, 1)))


def _list(kind: int, items: list[bytes]) -> bytes:
    if len(items) < 15:
        return bytes([len(items) << 4 | kind]) + b"".join(items)
    return bytes([0xF0 | kind]) + _varint(len(items)) + b"".join(items)


def _binary(value: bytes) -> bytes:
    return _varint(len(value)) + value


def _zigzag(value: int) -> bytes:
    return _varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])
