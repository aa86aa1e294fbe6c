"""A JPEG is plain only if any decoder must take it as ``exact`` does; all else is left alone."""

from __future__ import annotations

from typing import Any

import pytest
from encoding import encoded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from worker_processes import PHOTOS

from vlmbatch.config import ImageLimits
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.decode import decode_image
from vlmbatch.images.jpeg import PlainJpeg, read_plain_jpeg
from vlmbatch.types import ImageRef

LIMITS = ImageLimits(max_pixels=1_000_000)
SIZE = (97, 61)  # no multiples of a block


def jpeg(mode: str = "RGB", orientation: int | None = None, **options: Any) -> bytes:
    with Image.open(PHOTOS / "coffee.jpg") as photo:
        picture = photo.convert("RGB").resize(SIZE).convert(mode)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    return encoded(picture, "JPEG", exif=exif, **options)


def read(data: bytes, max_bytes: int = 2**20) -> PlainJpeg | None:
    return read_plain_jpeg(ImageRef(data=data), LIMITS, max_bytes)


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def with_segment(data: bytes, marker: int, body: bytes) -> bytes:
    return data[:2] + segment(marker, body) + data[2:]


def patched(data: bytes, marker: int, offset: int, value: int) -> bytes:
    """With a byte of the first segment of this marker, counted from its length, replaced."""
    at = data.index(bytes((0xFF, marker))) + 2 + offset
    return data[:at] + bytes((value,)) + data[at + 1 :]


PLAIN = {
    "4:2:0": jpeg(),
    "4:2:2": jpeg(subsampling=1),
    "4:4:4": jpeg(subsampling=0),
    "grey": jpeg("L"),
    "its own Huffman codes": jpeg(optimize=True),
    "restart markers": jpeg(restart_marker_blocks=3),
    "restart markers, a row of blocks each": jpeg("L", restart_marker_rows=1),
    "comments": jpeg(comment=b"\xff\xd9 is no end here", icc_profile=bytes(range(256)) * 300),
    "by Adobe, as YCbCr": with_segment(jpeg(), 0xEE, b"Adobe\0d\0\0\0\0\1"),
}
ODD = {
    "progressive": jpeg(progressive=True),
    "CMYK": jpeg("CMYK"),
    "RGB": jpeg(keep_rgb=True),
    "by Adobe, as RGB": with_segment(jpeg(), 0xEE, b"Adobe\0d\0\0\0\0\0"),
    "12 bits": patched(jpeg(), 0xC0, 2, 12),
    "extended": jpeg().replace(b"\xff\xc0", b"\xff\xc1", 1),
    "arithmetic": jpeg().replace(b"\xff\xc0", b"\xff\xc9", 1),
    "chroma finer than luma": patched(jpeg(), 0xC0, 9, 0x11).replace(b"\2\x11\1", b"\2\x22\1", 1),
    "grey in blocks of four": patched(jpeg("L"), 0xC0, 9, 0x22),
    "without a quantization table": jpeg().replace(b"\xff\xdb", b"\xff\xfe", 1),
    "without a Huffman table": jpeg().replace(b"\xff\xc4", b"\xff\xfe", 1),
    "another restart interval": patched(jpeg(restart_marker_blocks=3), 0xDD, 3, 4),
    "restart markers unannounced": jpeg(restart_marker_blocks=3).replace(b"\xff\xdd", b"\xff\xfe"),
    "without an end": jpeg()[:-2],
    "cut": jpeg()[:1500],
    "cut in its header": jpeg()[:300],
    "two pictures in one": jpeg()[:-2] + jpeg()[2:],
}


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_plain_jpegs(data: bytes) -> None:
    assert read(data) == PlainJpeg(data, SIZE[1], SIZE[0], None)


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_all_else_is_left_to_others(data: bytes) -> None:
    try:
        assert read(data) is None
    except RowError as error:
        assert error.code is ErrorCode.IMAGE_UNREADABLE


@pytest.mark.parametrize("rest", [b"\0" * 100, jpeg(), b"\xff\xd9", b"\xff"])
def test_what_lies_behind_is_left_out(rest: bytes) -> None:
    """As in phones' files of several pictures, or of one that moves."""
    found = read(jpeg() + rest)
    assert found is not None
    assert found.data == jpeg()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_its_orientation_is_told(orientation: int) -> None:
    found = read(jpeg(orientation=orientation))
    assert found is not None
    assert (found.orientation, found.height, found.width) == (orientation, 61, 97)


def test_other_formats_and_large_files_are_left_to_others() -> None:
    assert read(encoded(Image.new("RGB", (9, 9)))) is None
    assert read(jpeg(), len(jpeg())) is not None
    assert read(jpeg() + b"\0", len(jpeg())) is None


def test_limits_hold() -> None:
    with pytest.raises(RowError) as caught:
        read_plain_jpeg(ImageRef(data=jpeg()), ImageLimits(max_pixels=97 * 61 - 1), 2**20)
    assert caught.value.code is ErrorCode.IMAGE_TOO_LARGE


SEEDS = st.sampled_from([*PLAIN.values(), ODD["progressive"], ODD["CMYK"]])
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 30), st.binary(max_size=12)), min_size=1, max_size=4
)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@given(data=SEEDS, edits=EDITS, in_header=st.booleans(), ends=st.booleans())
def test_what_is_plain_is_never_refused(
    data: bytes, edits: list[tuple[float, int, bytes]], in_header: bool, ends: bool
) -> None:
    for place, dropped, put in edits:
        at = int(place * (min(700, len(data)) if in_header else len(data)))
        data = data[:at] + put + data[at + dropped :]
    if ends:
        data += b"\xff\xd9"
    try:
        found = read(data)
    except RowError:
        return
    if found is not None:
        image = decode_image(ImageRef(data=data), LIMITS)
        assert sorted(image.size) == sorted((found.width, found.height))
