"""Which JPEGs are plain enough for a decoder that says nothing of damage: those that are whole.

Of T.81 the baseline process alone, as cameras and programs write it: one scan of 8-bit Huffman
codes, from a frame of one or three components to the end-of-image marker. What a decoder needs to
be told is there, and what lies between the markers can be of the right length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import IntEnum

from vlmbatch.config import ImageLimits
from vlmbatch.images.decode import jpeg_layout
from vlmbatch.images.file import open_image_bytes
from vlmbatch.types import ImageRef


class _Marker(IntEnum):
    SOF0 = 0xC0
    DHT = 0xC4
    EOI = 0xD9
    SOS = 0xDA
    DQT = 0xDB
    DRI = 0xDD
    APP14 = 0xEE


_START = b"\xff\xd8\xff"
_COMMENTS = (*range(0xE0, 0xF0), 0xFE)  # APP0 to APP15, COM
# Among entropy-coded bytes 0xFF is followed by 0x00, or by what begins a marker.
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_MARKER = re.compile(rb"\xff[^\x00]")
_NO_RESTART = re.compile(rb"\xff[^\x00\xd0-\xd7]")
_LUMA = (0x11, 0x12, 0x21, 0x22)  # 4:4:4, 4:4:0, 4:2:2, 4:2:0; those of chroma are 1 x 1
_RGB_IDS = (0x52, 0x47, 0x42)
_YCBCR = 1  # in Adobe's marker


@dataclass(frozen=True, slots=True)
class PlainJpeg:
    """``data``: from the first marker to the last; what lies behind is left out.

    ``height`` and ``width``: as in the file, before ``orientation`` (EXIF, 1 to 8) turns it.
    """

    data: bytes = field(repr=False)
    height: int
    width: int
    orientation: int | None


def read_plain_jpeg(ref: ImageRef, limits: ImageLimits, max_bytes: int) -> PlainJpeg | None:
    """The file, where it is a plain JPEG of at most ``max_bytes``; None: any other.

    Raises:
        RowError: an image code, as ``decode_image`` would for its place, size or header.
        OSError: it cannot be read.
    """
    with open_image_bytes(ref, limits) as file:
        if file.read(len(_START)) != _START:
            return None
        file.seek(0)
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        return None
    height, width, orientation = jpeg_layout(replace(ref, data=data), limits)
    frame = _Frame()
    end = frame.read(data)
    if end is None or (frame.height, frame.width) != (height, width):
        return None
    return PlainJpeg(data[:end], height, width, orientation)


class _Frame:
    """What the segments of a JPEG tell, as far as they are plain."""

    def __init__(self) -> None:
        self.height = self.width = 0
        self._components: list[tuple[int, int, int]] = []  # id, sampling, quantization table
        self._quantization: set[int] = set()
        self._huffman: set[int] = set()  # class and number
        self._interval = 0  # of restart markers, in units of 8 x 8 blocks that belong together

    def read(self, data: bytes) -> int | None:
        """Where the picture ends in ``data``; None: it is not plain."""
        at = 2
        while data[at : at + 1] == b"\xff":
            marker = data[at + 1 : at + 2]
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            segment = data[at + 4 : at + 2 + length]
            if not marker or length < 2 or len(segment) != length - 2:
                return None
            at += 2 + length
            if marker[0] == _Marker.SOS:
                return self._scan_end(data, at) if self._is_whole_scan(segment) else None
            if not self._take(marker[0], segment):
                return None
        return None

    def _take(self, marker: int, segment: bytes) -> bool:
        """Note a segment that stands before the scan; whether it is plain."""
        match marker:
            case _Marker.DQT:
                return self._take_quantization(segment)
            case _Marker.DHT:
                return self._take_huffman(segment)
            case _Marker.SOF0:
                return self._take_frame(segment)
            case _Marker.DRI:
                self._interval = int.from_bytes(segment, "big")
                return len(segment) == 2
            case _Marker.APP14 if segment.startswith(b"Adobe"):
                return len(segment) == 12 and segment[11] == _YCBCR
        return marker in _COMMENTS

    def _take_quantization(self, segment: bytes) -> bool:
        while segment:
            if segment[0] > 3 or len(segment) < 65 or 0 in segment[1:65]:
                return False
            self._quantization.add(segment[0])
            segment = segment[65:]
        return True

    def _take_huffman(self, segment: bytes) -> bool:
        while segment:
            counts = segment[1:17]
            values = segment[17 : 17 + sum(counts)]
            if segment[0] not in (0x00, 0x01, 0x10, 0x11) or len(values) != sum(counts):
                return False
            room = 2**16  # codes of 16 bits; one of n bits takes those that it begins
            for bits, count in enumerate(counts, 1):
                room -= count << (16 - bits)
            # None may be of ones alone, and differences of 8-bit samples take 11 bits at the most.
            if room <= 0 or not values or (segment[0] < 0x10 and max(values) > 11):
                return False
            self._huffman.add(segment[0])
            segment = segment[17 + len(values) :]
        return True

    def _take_frame(self, segment: bytes) -> bool:
        if self._components or len(segment) < 6 or segment[0] != 8:
            return False
        self.height, self.width = (int.from_bytes(segment[at : at + 2], "big") for at in (1, 3))
        count = segment[5]
        if count not in (1, 3) or len(segment) != 6 + 3 * count:
            return False
        self._components = [
            (segment[at], segment[at + 1], segment[at + 2]) for at in range(6, 6 + 3 * count, 3)
        ]
        ids = tuple(each[0] for each in self._components)
        first, *others = (each[1] for each in self._components)
        return (
            len(set(ids)) == count
            and ids != _RGB_IDS
            and first in (_LUMA if others else (0x11,))
            and all(sampling == 0x11 for sampling in others)
            and min(self.height, self.width) > 0
        )

    def _is_whole_scan(self, segment: bytes) -> bool:
        """Whether the scan has all components, and all tables are there."""
        count = len(self._components)
        if not count or len(segment) != 4 + 2 * count or segment[0] != count:
            return False
        if segment[-3:] != bytes((0, 63, 0)):
            return False
        for index, (name, _, table) in enumerate(self._components):
            chosen, tables = segment[1 + 2 * index], segment[2 + 2 * index]
            known = {tables >> 4, 0x10 | tables & 0x0F} <= self._huffman
            if chosen != name or not known or table not in self._quantization:
                return False
        return True

    def _scan_end(self, data: bytes, at: int) -> int | None:
        marker = (_NO_RESTART if self._interval else _MARKER).search(data, at)
        if marker is None or data[marker.end() - 1] != _Marker.EOI:
            return None
        if self._interval:
            restarts = -(-self._num_units // self._interval) - 1
            if len(_RESTART.findall(data, at, marker.start())) != restarts:
                return None
        return marker.end()

    @property
    def _num_units(self) -> int:
        sampling = self._components[0][1]
        down, across = 8 * (sampling & 0x0F), 8 * (sampling >> 4)
        return -(-self.height // down) * -(-self.width // across)
