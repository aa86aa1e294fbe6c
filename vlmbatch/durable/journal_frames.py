"""The journal's bytes: segments of framed, checksummed results.

A segment is a header, then frames. Little-endian:

    header  magic 8s | version u32 | segment number u32 | run id 16s | CRC-32 u32 of all before it
    frame   marker 4s | CRC-32 u32 | payload length u32 | row index u64 | payload

A frame's CRC covers what follows it, and starts from the CRC of the segment's header: a frame of
another run or segment, left on the disk by chance, never counts. The payload is a JSON array of the
result's fields in UTF-8, in which the marker's first byte cannot occur: after damage the next frame
is found by its marker. Details, where a result has them, stand before the error's code.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from typing import cast

from vlmbatch.errors import ErrorCode
from vlmbatch.types import FinishReason, Result

VERSION = 1
RUN_ID_BYTES = 16

_MAGIC = b"VLMBJRNL"
_HEADER = struct.Struct("<8sII16sI")
_MARKER = b"\xffrow"
_FRAME = struct.Struct("<4sIIQ")
_CHECKED = struct.Struct("<IQ")
_CHECKED_FROM = _FRAME.size - _CHECKED.size

_ANSWER_END = b",null,null]"  # neither error code nor message, which is a string

HEADER_BYTES = _HEADER.size
FRAME_BYTES = _FRAME.size

# Compact, and exact for lone surrogates, which file names in messages can hold.
_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class ForeignVersionError(ValueError):
    """A segment or a result that another version of vlmbatch wrote."""


def segment_header(run_id: bytes, number: int) -> bytes:
    """The first bytes of segment ``number`` of a run. ``run_id``: 16 bytes."""
    packed = _HEADER.pack(_MAGIC, VERSION, number, run_id, 0)[:-4]
    return packed + struct.pack("<I", zlib.crc32(packed))


def segment_salt(header: bytes) -> int:
    """Where the CRCs of a segment's frames start from."""
    return cast(int, _HEADER.unpack(header)[-1])


def encode_frame(result: Result, salt: int) -> bytes:
    """A result as a frame. Its pass-through columns are left out: the manifest has them."""
    values = (
        result.id,
        result.text,
        result.finish_reason,
        result.prompt_tokens,
        result.image_tokens,
        result.completion_tokens,
        *((result.details,) if result.details else ()),
        result.error_code,
        result.error_message,
    )
    payload = _encode_json(values).encode("utf-8", "surrogatepass")
    checked = _CHECKED.pack(len(payload), result.index) + payload
    return b"%b%b%b" % (_MARKER, zlib.crc32(checked, salt).to_bytes(4, "little"), checked)


def frame_payload(data: bytes, salt: int) -> bytes | None:
    """The payload of the frame that ``data`` is; None when it is not that frame, whole."""
    if len(data) < FRAME_BYTES:
        return None
    marker, checksum, length, _ = _FRAME.unpack_from(data)
    if marker != _MARKER or len(data) != FRAME_BYTES + length:
        return None
    whole = zlib.crc32(memoryview(data)[_CHECKED_FROM:], salt) == checksum
    return data[FRAME_BYTES:] if whole else None


def frame_end(segment: bytes, offset: int) -> int:
    """Where the frame at ``offset`` ends."""
    return offset + FRAME_BYTES + cast(int, _FRAME.unpack_from(segment, offset)[2])


def holds_answer(segment: bytes, offset: int, end: int) -> bool:
    """Whether the frame from ``offset`` to ``end`` is of an answer; else it is of an error."""
    return segment.endswith(_ANSWER_END, offset, end)


def frame_length(head: bytes) -> int:
    """Bytes of the frame that starts with ``head``, which has at least ``FRAME_BYTES``."""
    return FRAME_BYTES + cast(int, _FRAME.unpack_from(head)[2])


def decode_result(row: int, payload: bytes) -> Result:
    """The result of a frame's payload, without pass-through columns.

    Raises:
        ForeignVersionError: not the fields, or an error code, that this version writes.
    """
    values = json.loads(payload.decode("utf-8", "surrogatepass"))
    try:
        row_id, text, finish_reason, prompt, image, completion, *more, code, message = values
        (details,) = more or ({},)
        error_code = None if code is None else ErrorCode(code)
    except ValueError as error:
        raise ForeignVersionError(str(error)) from error
    reason = cast(FinishReason | None, finish_reason)
    return Result(
        row, row_id, text, reason, prompt, image, completion, error_code, message, details=details
    )


@dataclass(frozen=True, slots=True)
class SegmentScan:
    """What a segment's bytes hold: frame k is of row ``rows[k]`` and starts at ``offsets[k]``.

    ``gaps``: (start, end) of bytes that are no frames, each before a frame. ``end``: where the last
    frame (or the header, when whole) ends; what follows is a torn tail.
    """

    rows: list[int]
    offsets: list[int]
    gaps: list[tuple[int, int]]
    end: int


def scan_segment(data: bytes, run_id: bytes, number: int) -> SegmentScan | None:
    """Find the frames of a segment, past any damage. None: the segment is of another run.

    Raises:
        ForeignVersionError: the segment's format is not this version's.
    """
    header = segment_header(run_id, number)
    if data.startswith(header):
        position = end = HEADER_BYTES
    else:
        if _is_whole_header(data):
            _, version, _, found_id, _ = _HEADER.unpack_from(data)
            if version != VERSION:
                raise ForeignVersionError(f"journal format {version}, expected {VERSION}")
            if found_id != run_id:
                return None
        position = end = 0
    salt = segment_salt(header)
    view = memoryview(data)
    rows: list[int] = []
    offsets: list[int] = []
    gaps: list[tuple[int, int]] = []
    while 0 <= position <= len(data) - FRAME_BYTES:
        marker, checksum, length, row = _FRAME.unpack_from(data, position)
        after = position + FRAME_BYTES + length
        if (
            marker != _MARKER
            or after > len(data)
            or zlib.crc32(view[position + _CHECKED_FROM : after], salt) != checksum
        ):
            position = data.find(_MARKER, position + 1)
            continue
        if position > end:
            gaps.append((end, position))
        rows.append(row)
        offsets.append(position)
        position = end = after
    return SegmentScan(rows, offsets, gaps, end)


def _is_whole_header(data: bytes) -> bool:
    if len(data) < HEADER_BYTES or not data.startswith(_MAGIC):
        return False
    return zlib.crc32(data[: HEADER_BYTES - 4]) == segment_salt(data[:HEADER_BYTES])
