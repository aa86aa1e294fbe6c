"""AVIF, which Pillow reads, and HEIC, the photos of phones, which pillow-heif reads."""

from __future__ import annotations

import io
import pickle
import socket
import struct
import subprocess
import sys
from contextlib import closing
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from encoding import encoded
from hypothesis import given
from hypothesis import strategies as st
from PIL import AvifImagePlugin, Image, ImageOps
from worker_processes import PROCESSOR

from vlmbatch.config import ImageLimits
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images import formats
from vlmbatch.images.decode import decode_image, probe_image
from vlmbatch.images.formats import known_format, video_format
from vlmbatch.images.iso_boxes import largest_coded_size, with_last_box_whole
from vlmbatch.images.loading import worker
from vlmbatch.images.loading.pool import ImageWorkers
from vlmbatch.images.loading.protocol import send
from vlmbatch.images.loading.settings import WorkerSettings
from vlmbatch.types import ImageRef, PixelImage

LIMITS = ImageLimits()
KINDS = pytest.mark.parametrize("kind", ["AVIF", "HEIC"])


def iso(kind: str, image: Image.Image, **options: Any) -> bytes:
    """As good as the format allows: colour is kept for each pixel, but rounded as YCbCr."""
    if kind == "AVIF":
        return encoded(image, kind, **{"quality": 100, "subsampling": "4:4:4", **options})
    import pillow_heif

    pillow_heif.register_heif_opener()
    return encoded(image, "HEIF", **{"quality": -1, "chroma": 444, **options})


def picture(width: int = 64, height: int = 48) -> Image.Image:
    """No two of its corners are alike."""
    down, across = np.mgrid[0:height, 0:width]
    channels = 255 * across // width, 255 * down // height, 255 * (across // 8 % 2)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def decoded(data: bytes) -> np.ndarray[Any, Any]:
    image = decode_image(ImageRef("a", data), LIMITS)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@KINDS
def test_pixels_and_header(kind: str) -> None:
    data = iso(kind, picture())
    assert known_format(data[:64]) == kind
    assert np.abs(decoded(data) - np.asarray(picture())).max() <= 4
    header = probe_image(ImageRef(data=data), LIMITS)
    assert (header.height, header.width) == (48, 64)


@KINDS
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    as_png = Image.open(io.BytesIO(encoded(picture(), exif=exif)))
    expected = np.asarray(ImageOps.exif_transpose(as_png))
    data = iso(kind, picture(), exif=exif.tobytes())
    assert decoded(data).shape == expected.shape
    assert np.abs(decoded(data) - expected).max() <= 4
    header = probe_image(ImageRef(data=data), LIMITS)
    assert (header.height, header.width) == expected.shape[:2]


@KINDS
def test_alpha_is_composed_over_white(kind: str) -> None:
    alpha = Image.linear_gradient("L").resize((64, 48))
    image = picture()
    image.putalpha(alpha)
    weight = np.asarray(alpha)[..., None] / 255
    expected = np.asarray(picture()) * weight + 255 * (1 - weight)
    assert np.abs(decoded(iso(kind, image)) - expected).max() <= 5


@KINDS
def test_grey(kind: str) -> None:
    grey = picture().convert("L")
    assert np.abs(decoded(iso(kind, grey)) - np.asarray(grey.convert("RGB"))).max() <= 4


def test_an_animation_is_its_first_frame() -> None:
    frames = {"save_all": True, "append_images": [Image.new("RGB", (64, 48), "blue")]}
    assert np.abs(decoded(iso("AVIF", picture(), **frames)) - np.asarray(picture())).max() <= 4


@KINDS
def test_what_is_wrong_with_a_file_is_told(kind: str) -> None:
    data = iso(kind, picture(400, 300))
    for keep in (40, len(data) // 2):
        with pytest.raises(RowError, match="a: corrupt or truncated") as caught:
            decoded(data[:keep])
        assert caught.value.code is ErrorCode.IMAGE_UNREADABLE
        assert caught.value.message == caught.value.message.strip()
    for read in (probe_image, decode_image):
        with pytest.raises(RowError, match="400 x 300 = 120000 pixels, over the limit of 119999"):
            read(ImageRef("a", data), ImageLimits(max_pixels=119_999))


@KINDS
def test_what_is_cut_out_of_a_large_picture_is_large(kind: str) -> None:
    data = announcing(iso(kind, picture()), 20_000, 10_000)
    for read in (probe_image, decode_image):
        with pytest.raises(RowError, match="a: 20000 x 10000 = 200000000 pixels, over") as caught:
            read(ImageRef("a", data), LIMITS)
        assert caught.value.code is ErrorCode.IMAGE_TOO_LARGE


@KINDS
@pytest.mark.parametrize("size", [(61, 47), (64, 48), (100, 75)])
def test_what_fills_up_blocks_counts_for_nothing(kind: str, size: tuple[int, int]) -> None:
    data = iso(kind, picture(*size))
    decode_image(ImageRef("a", data), ImageLimits(max_pixels=size[0] * size[1]))


def announcing(data: bytes, width: int, height: int) -> bytes:
    """The file with other extents of its picture."""
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def boxed(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + kind + body


def test_the_largest_picture_is_found_in_its_boxes() -> None:
    def extents(width: int, height: int) -> bytes:
        return boxed(b"ispe", struct.pack(">III", 0, width, height))

    shared = boxed(b"ipco", extents(3, 5), boxed(b"irot", b"\1"), extents(4, 4))
    meta = boxed(b"meta", bytes(4), boxed(b"free"), boxed(b"iprp", shared))
    assert largest_coded_size(boxed(b"mdat", extents(9, 9)) + meta) == (4, 4)
    long = struct.pack(">I4sQ", 1, b"meta", len(meta) + 8) + meta[8:]
    to_the_end = bytes(4) + meta[4:]
    assert largest_coded_size(long) == largest_coded_size(to_the_end) == (4, 4)
    assert largest_coded_size(meta[:-20]) == (3, 5)
    for size in (2, 2**32 - 1):
        assert largest_coded_size(struct.pack(">I4s", size, b"free") + meta) == (0, 0)


def test_the_last_box_of_a_start_is_made_whole() -> None:
    start = boxed(b"ftyp", b"avif")
    cut = boxed(b"mdat", b"pixels")[:-2]
    assert with_last_box_whole(start + cut, 2) == start + cut + bytes(2)
    assert with_last_box_whole(start + cut, 1) == start + cut
    assert with_last_box_whole(start, 99) == start
    assert with_last_box_whole(start + b"\0", 99) == start + b"\0"


@given(st.binary(max_size=80))
def test_boxes_of_anything(data: bytes) -> None:
    for start in (
        b"",
        boxed(b"meta")[:8],
        bytes(4) + b"meta" + bytes(8) + b"iprp" + bytes(4) + b"ipco",
    ):
        largest_coded_size(start + data)
        assert with_last_box_whole(start + data, 2**20).startswith(start + data)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x18ftypavis\0\0\0\0msf1avis", "AVIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0mif1avif", "HEIC"),  # the box ends before it
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x20ftypheic\0\0\0\0mif1heicMiHEmiaf", "HEIC"),
        (b"\0\0\0\x20ftypisom\0\0\0\0isomiso2avc1mp41", None),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42mif1", None),
    ],
)
def test_brands(head: bytes, name: str | None) -> None:
    assert known_format(head) == name
    assert name or video_format(head) == "MP4"


@pytest.mark.parametrize(
    ("library", "cause"),
    [
        (None, "pillow-heif is not installed: pip install 'vlmbatch[heic]'"),
        (ModuleType("pillow_heif"), "cannot import name 'HeifImageFile'"),  # a broken one
    ],
)
def test_heic_without_its_library(
    monkeypatch: pytest.MonkeyPatch, library: ModuleType | None, cause: str
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", library)
    with pytest.raises(RowError, match="a: HEIC is not read here: ") as caught:
        decoded(b"\0\0\0\x14ftypheic" + bytes(40))
    assert caught.value.code is ErrorCode.IMAGE_FORMAT_UNSUPPORTED
    assert cause in caught.value.message


def test_avif_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    with pytest.raises(RowError, match="a: AVIF is not read here: this build of Pillow") as caught:
        decoded(b"\0\0\0\x14ftypavif" + bytes(40))
    assert caught.value.code is ErrorCode.IMAGE_FORMAT_UNSUPPORTED


@KINDS
def test_workers_decode_large_ones_within_their_memory(kind: str) -> None:
    quickly = {"speed": 10} if kind == "AVIF" else {"enc_params": {"preset": "ultrafast"}}
    data = iso(kind, Image.new("RGB", (4000, 3000), "orange"), quality=80, **quickly)
    with closing(ImageWorkers(LIMITS, PROCESSOR, 1, 60.0, 4)) as workers:
        image = workers.submit(ImageRef(data=data)).result()
    assert isinstance(image, PixelImage)
    assert np.abs(image.pixels[8, 8].astype(int) - (255, 165, 0)).max() <= 4


def test_libraries_are_loaded_when_such_an_image_comes() -> None:
    code = "import sys, vlmbatch.images.loading.worker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"PIL.AvifImagePlugin", "pillow_heif"}.isdisjoint(done.stdout.split())


def test_a_worker_decodes_avif_on_one_thread() -> None:
    """There are as many workers as cores."""
    code = (
        "import io, os, sys\n"
        "from vlmbatch.images.formats import decode_on_one_thread, open_decoder\n"
        "threads = lambda: len(os.listdir('/proc/self/task'))\n"
        "decode_on_one_thread(); before = threads()\n"
        "image = open_decoder(io.BytesIO(sys.stdin.buffer.read()), 'AVIF'); image.load()\n"
        "print(threads() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=iso("AVIF", picture()), capture_output=True, check=True
    )
    assert done.stdout.strip() == b"0"


def test_workers_have_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_one_thread", False)
    monkeypatch.setattr(worker, "_restrain", lambda memory: None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        settings = WorkerSettings(LIMITS, PROCESSOR, "exact", 1.0)
        send(ours, {}, pickle.dumps(settings))
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            worker._serve(theirs, np.zeros(1, np.uint8))
    assert formats._one_thread


def test_a_worker_decodes_heic_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of tiles have ended when the image is there: none can be counted."""
    from pillow_heif import options

    monkeypatch.setattr(options, "DECODE_THREADS", 4)
    monkeypatch.setattr(formats, "_one_thread", False)
    decoded(iso("HEIC", picture()))
    assert options.DECODE_THREADS == 4
    formats.decode_on_one_thread()
    decoded(iso("HEIC", picture()))
    assert options.DECODE_THREADS == 0


@KINDS
def test_what_xmp_says_turns_nothing(kind: str) -> None:
    """The format has its own property for that."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = iso(kind, picture(), xmp=xmp)
    if kind == "HEIC":  # pillow-heif writes the property as well
        data = data.replace(b"irot", b"free")
    assert np.abs(decoded(data) - np.asarray(picture())).max() <= 4
    header = probe_image(ImageRef(data=data), LIMITS)
    assert (header.height, header.width) == (48, 64)
