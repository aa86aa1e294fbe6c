"""What the boxes of an AVIF or HEIC file tell, of which there may be the start alone.

Boxes: ISO/IEC 14496-12, 4.2; image spatial extents: ISO/IEC 23008-12, 6.5.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_MAX_BOXES = 20_000  # beside each other, as in libheif
_EXTENTS = struct.Struct(">4xII")


def largest_coded_size(data: bytes) -> tuple[int, int]:
    """Width and height of the largest picture that is announced, before a part is cut out of it.

    What has none is a decoder's business: 0 x 0.
    """
    sizes = [_EXTENTS.unpack_from(box) for box in _extents(data) if len(box) >= _EXTENTS.size]
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))


def with_last_box_whole(start: bytes, most: int) -> bytes:
    """The start of a file, with zeros in the place of what lacks of the box in which it ends.

    As it is where that would be more than ``most`` bytes.
    """
    ends = [end for _, _, end in _boxes(memoryview(start))]
    lacking = ends[-1] - len(start) if ends else 0
    return start + bytes(lacking) if 0 < lacking <= most else start


def _extents(data: bytes) -> Iterator[memoryview]:
    for meta in _contents(memoryview(data), b"meta"):
        for properties in _contents(meta[4:], b"iprp"):  # behind version and flags
            for shared in _contents(properties, b"ipco"):
                yield from _contents(shared, b"ispe")


def _contents(data: memoryview, wanted: bytes) -> Iterator[memoryview]:
    """What is in the boxes of a kind that lie beside each other."""
    return (data[start:end] for kind, start, end in _boxes(data) if kind == wanted)


def _boxes(data: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Kinds of the boxes beside each other, and where their contents begin and would end.

    There are no more where one is malformed.
    """
    at = 0
    for _ in range(_MAX_BOXES):
        start, size = at + 8, int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            start, size = at + 16, int.from_bytes(data[at + 8 : at + 16], "big")
        end = len(data) if size == 0 else at + size
        if start > min(end, len(data)):
            return
        yield bytes(data[at + 4 : at + 8]), start, end
        at = end
