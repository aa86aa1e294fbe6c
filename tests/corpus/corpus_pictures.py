"""One drawn scene in every format and mode that is read, and files that are no good images."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from drawing import draw
from encoding import encoded
from objects import Background, Box, Number, Shape
from PIL import ExifTags, Image

SIDE = 160
WHITE = (255, 255, 255)
DESCRIPTION = "A red circle, a blue star and the number 42."
NUMBER = "42"

_SHAPES = (
    Shape("circle", "red", Box(0.2, 0.3, 0.14, 0.14)),
    Shape("star", "blue", Box(0.75, 0.28, 0.14, 0.14)),
)
_NUMBER = Number(42, 0.3, Box(0.45, 0.72, 0.18, 0.13))
_OTHER_SHAPES = (
    Shape("square", "green", Box(0.25, 0.6, 0.14, 0.14)),
    Shape("triangle", "purple", Box(0.7, 0.4, 0.14, 0.14)),
)
_BACKGROUND = Background(WHITE, noise=0, cells=16, noise_seed=0)
_UPRIGHT_TO_STORED = {  # what undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def scene() -> Image.Image:
    """The picture that ``DESCRIPTION`` tells: shapes and a number on white."""
    return draw((SIDE, SIDE), _BACKGROUND, _SHAPES, _NUMBER)


def other_scene() -> Image.Image:
    return draw((SIDE, SIDE), _BACKGROUND, _OTHER_SHAPES, None)


def colour_pictures() -> Iterator[tuple[str, bytes]]:
    """The scene as files whose true colours are those of ``plain.png``."""
    picture = scene()
    yield "plain.png", encoded(picture)
    yield "really-a-png.jpg", encoded(picture)
    yield "palette.png", encoded(picture.quantize(64))
    yield "palette-transparent.png", encoded(_transparent_palette(picture))
    yield "rgba.png", encoded(_see_through(picture))
    yield "cmyk.jpg", encoded(picture.convert("CMYK"), "JPEG", quality=90)
    yield "progressive.jpg", encoded(picture, "JPEG", quality=90, progressive=True)
    behind = encoded(other_scene(), "JPEG", quality=90)  # as in phones' files of several pictures
    yield "two-pictures.jpg", encoded(picture, "JPEG", quality=90) + behind
    yield "lzw.tif", encoded(picture, "TIFF", compression="tiff_lzw")
    yield "scene.bmp", encoded(picture.quantize(64), "BMP")
    frames = {"save_all": True, "append_images": [other_scene()], "duration": 100}
    yield "animated.gif", encoded(picture, "GIF", **frames)
    yield "animated.webp", encoded(picture, "WEBP", lossless=True, **frames)
    yield (
        "corrupt-exif.jpg",
        encoded(picture, "JPEG", quality=90, exif=b"Exif\0\0II*\0\xff\xff\xff"),
    )
    for orientation in range(1, 9):
        yield f"exif-{orientation}.jpg", _rotated(picture, orientation)


def grey_pictures() -> Iterator[tuple[str, bytes]]:
    """The number alone, in black on white."""
    picture = draw((SIDE, SIDE), _BACKGROUND, (), _NUMBER)
    grey = picture.convert("L")
    yield "grey.png", encoded(grey)
    sixteen = Image.frombytes(
        "I;16", grey.size, b"".join(struct.pack("<H", v * 257) for v in grey.tobytes())
    )
    yield "grey-16-bit.png", encoded(sixteen)
    yield "grey-alpha.png", encoded(_see_through(picture).convert("LA"))


def odd_sizes() -> Iterator[tuple[str, bytes]]:
    yield "1x1.png", encoded(Image.new("RGB", (1, 1), "red"))
    yield "1x10000.png", encoded(Image.new("RGB", (1, 10_000), "red"))
    yield "10000x1.png", encoded(Image.new("RGB", (10_000, 1), "red"))


def bad_pictures() -> Iterator[tuple[str, bytes]]:
    """What must come out as an error of its row."""
    jpeg = encoded(scene(), "JPEG", quality=90)
    yield "empty.jpg", b""
    yield "page.jpg", b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n"
    yield "truncated.jpg", jpeg[: len(jpeg) // 2]
    yield "no-end.jpg", jpeg[:-2]
    yield "20000x20000.png", png(20_000, 20_000, depth=8, colour_type=2, rows=bytes(100))
    yield "bomb.png", png(12_000, 12_000, depth=1, colour_type=0, rows=bytes(1501 * 12_000))
    yield "drawing.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
    yield "layers.psd", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 10, 10, 8, 3) + bytes(20)
    yield "clip.mp4", struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 512, b"mp41") + bytes(40)
    yield "clip.webm", b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\1\x42\x82\x84webm" + bytes(40)
    yield "clip.avi", b"RIFF" + struct.pack("<I", 40) + b"AVI LIST" + bytes(32)
    yield "sky.fits", b"SIMPLE  =                    T" + b" " * 50 + b"END" + b" " * 77


def png(width: int, height: int, *, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG made by hand; ``rows``: the scan lines with their filter bytes, or fewer."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def _see_through(picture: Image.Image) -> Image.Image:
    """RGBA whose white is see-through, and black for who overlooks that."""
    mask = _ink(picture)
    result = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    result.paste(picture.convert("RGBA"), mask=mask)
    return result


def _ink(picture: Image.Image) -> Image.Image:
    """255 where ``picture`` is not white."""
    return picture.convert("L").point(lambda grey: 0 if grey == 255 else 255)


def _transparent_palette(picture: Image.Image) -> Image.Image:
    """A palette whose white is see-through, and black for who overlooks that."""
    palette = picture.quantize(64)
    white = palette.getpixel((0, 0))
    assert isinstance(white, int)
    colours = palette.getpalette() or []
    colours[3 * white : 3 * white + 3] = [0, 0, 0]
    palette.putpalette(colours)
    palette.info["transparency"] = white
    return palette


def _rotated(picture: Image.Image, orientation: int) -> bytes:
    if orientation in _UPRIGHT_TO_STORED:
        picture = picture.transpose(_UPRIGHT_TO_STORED[orientation])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(picture, "JPEG", quality=90, exif=exif)
