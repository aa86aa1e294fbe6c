"""Images come out upright, in true RGB, whatever their format and mode."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from encoding import encoded
from PIL import Image, ImageOps

from vlmbatch.config import ImageLimits
from vlmbatch.errors import RowError
from vlmbatch.images.decode import ImageHeader, decode_image, probe_image
from vlmbatch.types import ImageRef

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
LIMITS = ImageLimits()


def decoded(data: bytes) -> np.ndarray:
    image = decode_image(ImageRef(data=data), LIMITS)
    assert image.mode == "RGB"
    return np.asarray(image)


def png(
    width: int, height: int, depth: int, colour_type: int, raw: bytes, **chunks: bytes
) -> bytes:
    """A PNG made by hand, for what Pillow cannot write. ``raw``: the rows with filter bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    extra = b"".join(chunk(kind.encode(), body) for kind, body in chunks.items())
    pixels = chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats(kind):
    data = encoded(Image.fromarray(RGB), kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decoded(data), RGB)
    assert probe_image(ImageRef(data=data), LIMITS) == ImageHeader(kind, 30, 20)


def test_jpeg_as_plain_pillow():
    data = encoded(Image.fromarray(RGB), "JPEG", quality=80)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decoded(data), expected)


def test_format_is_told_by_content(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(Image.fromarray(RGB), "PNG"))
    ref = ImageRef(str(path))
    assert probe_image(ref, LIMITS).format == "PNG"
    np.testing.assert_array_equal(np.asarray(decode_image(ref, LIMITS)), RGB)


def test_multi_picture_jpeg_is_its_first(tmp_path):
    first, second = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert decoded(data)[8, 8] == pytest.approx([254, 0, 0], abs=2)
    assert probe_image(ImageRef(data=data), LIMITS).format == "JPEG"


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_animation_is_its_first_frame(kind):
    first, second = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    data = encoded(first, kind, save_all=True, append_images=[second], lossless=True)
    np.testing.assert_array_equal(decoded(data)[8, 8], [255, 0, 0])


class TestAlpha:
    ALPHA = np.linspace(0, 255, 30, dtype=np.uint8)[None, :].repeat(20, 0)

    @staticmethod
    def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        weight = alpha[..., None] / 255
        return colour * weight + 255 * (1 - weight)

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
    def test_rgba(self, kind):
        image = Image.fromarray(np.dstack([RGB, self.ALPHA]))
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        pixels = decoded(encoded(image, kind, **options))
        assert np.abs(pixels - self.over_white(RGB, self.ALPHA)).max() <= 1

    def test_grey_with_alpha(self):
        grey = RGB[..., 0]
        pixels = decoded(encoded(Image.fromarray(np.dstack([grey, self.ALPHA])), "PNG"))
        expected = self.over_white(grey[..., None].repeat(3, 2), self.ALPHA)
        assert np.abs(pixels - expected).max() <= 1

    @pytest.mark.parametrize(
        ("kind", "transparency"), [("PNG", 1), ("PNG", b"\xff\x00\x80"), ("GIF", 1)]
    )
    def test_palette(self, kind, transparency):
        image = Image.new("P", (3, 1))
        image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
        image.putdata([0, 1, 2])
        pixels = decoded(encoded(image, kind, transparency=transparency))[0]
        half = [127, 127, 227] if isinstance(transparency, bytes) else [0, 0, 200]
        assert pixels.tolist() == [[200, 0, 0], [255, 255, 255], pytest.approx(half, abs=1)]

    def test_transparent_colour(self):
        image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
        pixels = decoded(encoded(image, "PNG", transparency=(1, 2, 3)))[0]
        assert pixels.tolist() == [[255, 255, 255], [4, 5, 6]]

    def test_transparent_colour_in_16_bits(self):
        raw = b"\0" + struct.pack(">6H", 256, 512, 768, 1024, 1280, 1536)
        pixels = decoded(png(2, 1, 16, 2, raw, tRNS=struct.pack(">3H", 256, 512, 768)))[0]
        assert pixels.tolist() == [[255, 255, 255], [4, 5, 6]]

    @pytest.mark.parametrize(
        ("depth", "raw", "transparent", "expected"),
        [
            (1, b"\x40", 0, [255, 255, 255]),
            (2, b"\x1b", 1, [0, 255, 170, 255]),
            (4, b"\x5f\xa0", 5, [255, 255, 170, 0]),
            (8, b"\x05\x0f", 5, [255, 15]),
            (16, b"\x05\x00\x05\x01\x0f\xff", 0x500, [255, 5, 15]),
        ],
    )
    def test_transparent_grey_of_every_depth(self, depth, raw, transparent, expected):
        data = png(len(expected), 1, depth, 0, b"\0" + raw, tRNS=struct.pack(">H", transparent))
        pixels = decoded(data)[0]
        assert pixels.tolist() == [[value] * 3 for value in expected]


class TestDepthsAndColourSpaces:
    GREY16 = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    GREY8 = (0, 0, 1, 128, 255)

    def test_16_bit_png(self):
        pixels = decoded(encoded(Image.fromarray(self.GREY16), "PNG"))[0]
        assert pixels.tolist() == [[value] * 3 for value in self.GREY8]

    @pytest.mark.parametrize(("mode", "order"), [("I;16", "<u2"), ("I;16B", ">u2")])
    def test_16_bit_tiff(self, mode, order):
        image = Image.frombytes(mode, (5, 1), self.GREY16.astype(order).tobytes())
        assert decoded(encoded(image, "TIFF"))[0, :, 0].tolist() == list(self.GREY8)

    def test_16_bits_in_32(self):
        image = Image.fromarray(self.GREY16.astype(np.int32))
        assert decoded(encoded(image, "TIFF"))[0, :, 0].tolist() == list(self.GREY8)

    def test_8_bits_in_32(self):
        values = np.array([[-1, 0, 1, 128, 255]], dtype=np.int32)
        assert decoded(encoded(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [
            *(0, 0, 1, 128, 255)
        ]

    def test_dark_16_bits_stay_dark(self):
        dark = Image.fromarray(np.array([[0, 128, 255]], dtype=np.uint16))
        for kind in ("PNG", "TIFF"):
            assert decoded(encoded(dark, kind))[0, :, 0].tolist() == [0, 0, 0]

    def test_32_bits(self):
        image = Image.fromarray(np.array([[-5, 0, 2**30, 2**31 - 1]], dtype=np.int32))
        assert decoded(encoded(image, "TIFF"))[0, :, 0].tolist() == [0, 0, 128, 255]

    def test_16_bit_colour_agrees_with_16_bit_grey(self):
        raw = b"\0" + self.GREY16.astype(">u2").repeat(3).tobytes()
        assert decoded(png(5, 1, 16, 2, raw))[0, :, 0].tolist() == list(self.GREY8)

    @pytest.mark.parametrize("mode", ["1", "L"])
    def test_grey(self, mode):
        image = Image.fromarray(RGB).convert(mode)
        np.testing.assert_array_equal(
            decoded(encoded(image, "PNG")), np.asarray(image.convert("RGB"))
        )

    @pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
    def test_cmyk(self, kind):
        image = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
        assert decoded(encoded(image, kind))[8, 8] == pytest.approx([200, 40, 90], abs=3)

    def test_floating_point_is_refused(self):
        image = Image.fromarray(np.ones((2, 2), dtype=np.float32))
        with pytest.raises(RowError, match="embedded image: floating-point") as caught:
            decoded(encoded(image, "TIFF"))
        assert caught.value.code == "image_format_unsupported"


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_transposed(self, kind, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(Image.fromarray(RGB), kind, exif=exif, **options)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(decoded(data), np.asarray(expected))
        assert decoded(data).shape == ((30, 20, 3) if orientation > 4 else (20, 30, 3))
        header = probe_image(ImageRef(data=data), LIMITS)
        assert (header.height, header.width) == decoded(data).shape[:2]

    def test_quarter_turn_by_hand(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was held so that the top of the scene is at the right
        data = encoded(Image.fromarray(RGB), "PNG", exif=exif)
        np.testing.assert_array_equal(decoded(data), np.rot90(RGB, -1))

    def test_not_transposed_twice(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        image = decode_image(
            ImageRef(data=encoded(Image.fromarray(RGB), "JPEG", exif=exif)), LIMITS
        )
        assert ImageOps.exif_transpose(image).size == image.size == (20, 30)

    @pytest.mark.parametrize(
        "exif",
        [
            b"Exif\0\0",
            b"Exif\0\0II*\0\xff\xff\xff\xff",
            b"Exif\0\0garbage" * 9,
            b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\xff\0\0\0\xff",
        ],
    )
    def test_corrupt_exif_is_ignored(self, exif):
        data = encoded(Image.fromarray(RGB), "JPEG", exif=exif)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert decoded(data).shape == (20, 30, 3)

    def test_orientation_out_of_range_is_ignored(self):
        exif = Image.Exif()
        exif[0x0112] = 77
        assert decoded(encoded(Image.fromarray(RGB), "PNG", exif=exif)).shape == (20, 30, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_extreme_shapes(size):
    data = encoded(Image.new("RGB", size, "red"), "PNG")
    assert decoded(data).shape == (size[1], size[0], 3)


def test_result_needs_its_file_no_more(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(RGB), "PNG"))
    image = decode_image(ImageRef(str(path)), LIMITS)
    path.unlink()
    np.testing.assert_array_equal(np.asarray(image.copy()), RGB)
