"""How large the pictures in an AVIF or HEIC file are before what is shown of them is cut out.

Boxes: ISO/IEC 14496-12, 4.2; image spatial extents: ISO/IEC 23008-12, 6.5.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_MAX_BOXES = 20_000  # beside each other, as in libheif
_EXTENTS = struct.Struct(">4xII")


def largest_coded_size(data: bytes) -> tuple[int, int]:
    """Width and height of the largest picture that a file, or the start of one, announces.

    What has none is a decoder's business: 0 x 0.
    """
    sizes = [_EXTENTS.unpack_from(box) for box in _extents(data) if len(box) >= _EXTENTS.size]
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))


def _extents(data: bytes) -> Iterator[memoryview]:
    for meta in _boxes(memoryview(data), b"meta"):
        for properties in _boxes(meta[4:], b"iprp"):  # behind version and flags
            for shared in _boxes(properties, b"ipco"):
                yield from _boxes(shared, b"ispe")


def _boxes(data: memoryview, kind: bytes) -> Iterator[memoryview]:
    """What is in the boxes of a kind that lie beside each other; ends where they are malformed."""
    at = 0
    for _ in range(_MAX_BOXES):
        start, size = at + 8, int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            start, size = at + 16, int.from_bytes(data[at + 8 : at + 16], "big")
        end = len(data) if size == 0 else at + size
        if not start <= end or start > len(data):
            return
        if data[at + 4 : at + 8] == kind:
            yield data[start:end]
        at = end
