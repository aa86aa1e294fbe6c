"""Images that must not be read, or cannot be: an error that says why, and never a hang."""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import threading
import warnings
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmbatch.config import ImageLimits
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.decode import decode_image, probe_image
from vlmbatch.images.file import open_image_bytes
from vlmbatch.types import ImageRef

LIMITS = ImageLimits()


def encoded(kind: str, size: tuple[int, int] = (40, 30), **options) -> bytes:
    image = Image.frombytes("RGB", size, random.Random(0).randbytes(size[0] * size[1] * 3))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refusal(ref: ImageRef, limits: ImageLimits = LIMITS) -> RowError:
    with pytest.raises(RowError) as caught:
        decode_image(ref, limits)
    return caught.value


def huge_png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    chunks = (
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.timeout(20)
class TestNotAFile:
    def test_missing(self, tmp_path):
        for path in (tmp_path / "no.jpg", tmp_path / "no" / "a.jpg", __file__ + "/a.jpg"):
            error = refusal(ImageRef(str(path)))
            assert error.code is ErrorCode.IMAGE_MISSING
            assert str(path) in error.message

    def test_a_long_path_is_shown_by_its_ends(self, tmp_path):
        path = "/start/" + "x" * 5000 + "/end.jpg"
        limited = ImageLimits(root=tmp_path)
        for limits, longest in ((LIMITS, 300), (limited, 1000)):
            message = refusal(ImageRef(path), limits).message
            assert message.startswith("/start/xx") and "xx…xx" in message
            assert "xx/end.jpg: " in message and len(message) < longest

    def test_links_are_followed_only_for_a_root(self, tmp_path, monkeypatch):
        file = tmp_path / "a.png"
        file.write_bytes(encoded("PNG"))
        ref = ImageRef(str(file))

        def no_proc(path):
            raise PermissionError(1, "not here")

        monkeypatch.setattr(Path, "readlink", no_proc)
        monkeypatch.setattr(Path, "stat", no_proc)
        assert open_image_bytes(ref, LIMITS).read() == file.read_bytes()
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        error = refusal(ref, ImageLimits(root=tmp_path))
        assert (error.code, "changed while" in error.message) == (ErrorCode.IMAGE_FORBIDDEN, True)
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors

    def test_folder(self, tmp_path):
        error = refusal(ImageRef(str(tmp_path)))
        assert error.code is ErrorCode.IMAGE_UNREADABLE and "a folder" in error.message

    def test_named_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "a.jpg")
        error = refusal(ImageRef(str(tmp_path / "a.jpg")))
        assert error.code is ErrorCode.IMAGE_UNREADABLE and "a named pipe" in error.message

    @pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/tty"])
    def test_device(self, device):
        assert refusal(ImageRef(device)).code is ErrorCode.IMAGE_UNREADABLE

    def test_socket(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("s.jpg")
            assert refusal(ImageRef("s.jpg")).code is ErrorCode.IMAGE_UNREADABLE

    def test_loop_of_links(self, tmp_path):
        (tmp_path / "a.jpg").symlink_to(tmp_path / "b.jpg")
        (tmp_path / "b.jpg").symlink_to(tmp_path / "a.jpg")
        for limits in (LIMITS, ImageLimits(root=tmp_path)):
            assert refusal(ImageRef(str(tmp_path / "a.jpg")), limits).code is (
                ErrorCode.IMAGE_UNREADABLE
            )

    def test_name_too_long(self):
        assert refusal(ImageRef("a" * 5000)).code is ErrorCode.IMAGE_UNREADABLE

    def test_nothing_stays_open(self, tmp_path):
        before = len(list(Path("/proc/self/fd").iterdir()))
        for path in (tmp_path, Path("/dev/zero")):
            refusal(ImageRef(str(path)))
        (tmp_path / "a.jpg").write_bytes(b"")
        refusal(ImageRef(str(tmp_path / "a.jpg")))
        assert len(list(Path("/proc/self/fd").iterdir())) == before


class TestRoot:
    @pytest.fixture
    def root(self, tmp_path):
        root = tmp_path / "root"
        root.mkdir()
        (root / "in.png").write_bytes(encoded("PNG"))
        (tmp_path / "out.png").write_bytes(encoded("PNG"))
        (tmp_path / "root-beside").mkdir()
        (tmp_path / "root-beside" / "a.png").write_bytes(encoded("PNG"))
        (root / "link.png").symlink_to("../out.png")
        (root / "folder").symlink_to("..")
        (root / "good.png").symlink_to("in.png")
        return root

    @pytest.mark.parametrize("name", ["in.png", "good.png", "../root/in.png", "folder/root/in.png"])
    def test_inside(self, root, name):
        for limits in (ImageLimits(root=root), ImageLimits(root=root / "folder" / "root")):
            assert probe_image(ImageRef(f"{root}/{name}"), limits).width == 40

    @pytest.mark.parametrize(
        "name",
        [
            *("../out.png", "link.png", "folder/out.png", "../root-beside/a.png", "../none.png"),
            *("..", "/dev/zero", "/etc/passwd"),
        ],
    )
    def test_outside(self, root, name):
        path = name if name.startswith("/") else f"{root}/{name}"
        assert probe_code(path, ImageLimits(root=root)) is ErrorCode.IMAGE_FORBIDDEN

    def test_missing_inside(self, root):
        assert probe_code(f"{root}/none.png", ImageLimits(root=root)) is ErrorCode.IMAGE_MISSING


def probe_code(path: str, limits: ImageLimits) -> ErrorCode:
    with pytest.raises(RowError) as caught:
        probe_image(ImageRef(path), limits)
    return caught.value.code


class TestContent:
    @pytest.mark.parametrize(
        ("data", "code", "cause"),
        [
            (b"", ErrorCode.IMAGE_UNREADABLE, "empty (0 bytes)"),
            (b"\n<!DOCTYPE html><title>404", ErrorCode.IMAGE_UNREADABLE, "a web page"),
            (
                b"version https://git-lfs.github.com/spec/v1",
                ErrorCode.IMAGE_UNREADABLE,
                "git lfs pull",
            ),
            (b"hello world", ErrorCode.IMAGE_UNREADABLE, "it starts with b'hello wo'"),
            (b"\xff", ErrorCode.IMAGE_UNREADABLE, "it starts with"),
            (b"\xff\xd8\xff", ErrorCode.IMAGE_UNREADABLE, "corrupt or truncated"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n", ErrorCode.IMAGE_FORMAT_UNSUPPORTED, "EPS"),
            (b"8BPS\0\1" + bytes(20), ErrorCode.IMAGE_FORMAT_UNSUPPORTED, "PSD"),
            (b"SIMPLE  =                    T", ErrorCode.IMAGE_FORMAT_UNSUPPORTED, "FITS"),
            (b"P6 2 2 255\n" + bytes(12), ErrorCode.IMAGE_FORMAT_UNSUPPORTED, "PNM"),
            (b"\0\0\0\x20ftypisom", ErrorCode.IMAGE_FORMAT_UNSUPPORTED, "a video (MP4), not"),
            (b"\0\0\0\x14ftypqt  ", ErrorCode.IMAGE_FORMAT_UNSUPPORTED, "a video (QuickTime)"),
            (b"\0\0\0\x6cmoov", ErrorCode.IMAGE_FORMAT_UNSUPPORTED, "a video (QuickTime), not"),
            (b"\x1a\x45\xdf\xa3\x9f", ErrorCode.IMAGE_FORMAT_UNSUPPORTED, "a video (WebM or"),
            (b"RIFF\0\0\0\0AVI LIST", ErrorCode.IMAGE_FORMAT_UNSUPPORTED, "a video (AVI), not"),
            (b"\0\0\0\x18ftypcrx \0", ErrorCode.IMAGE_FORMAT_UNSUPPORTED, "CR3 is not read"),
            (b"FUJIFILMCCD-RAW 0201", ErrorCode.IMAGE_FORMAT_UNSUPPORTED, "RAF is not read"),
            (b"FLV\1\5", ErrorCode.IMAGE_FORMAT_UNSUPPORTED, "a video (FLV), not an image"),
            (b"\0\0\1\xba\x44", ErrorCode.IMAGE_FORMAT_UNSUPPORTED, "a video (MPEG), not"),
        ],
    )
    def test_not_an_image_we_read(self, tmp_path, data, code, cause):
        path = tmp_path / "a.jpg"
        path.write_bytes(data)
        for ref in (ImageRef(str(path)), ImageRef("label.jpg", data)):
            error = refusal(ref)
            assert error.code is code
            assert error.message.startswith(f"{ref.path}: ") and cause in error.message

    def test_a_raw_file_is_not_its_preview(self):
        assert decode_image(ImageRef("a", encoded("TIFF", tiffinfo={254: 0})), LIMITS)
        data = encoded("TIFF", tiffinfo={254: 1})
        for read in (probe_image, decode_image):
            with pytest.raises(RowError, match="raw: a small preview") as caught:
                read(ImageRef("raw", data), LIMITS)
            assert caught.value.code is ErrorCode.IMAGE_FORMAT_UNSUPPORTED

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
    def test_truncated(self, kind):
        data = encoded(kind)
        for keep in (len(data) // 2, len(data) * 9 // 10):
            error = refusal(ImageRef("a", data[:keep]))
            assert error.code is ErrorCode.IMAGE_UNREADABLE

    def test_truncated_jpeg_has_a_good_header(self):
        data = encoded("JPEG")
        assert probe_image(ImageRef("a", data[: len(data) // 2]), LIMITS).width == 40


class TestLimits:
    def test_bomb_is_refused_by_its_header(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            error = refusal(ImageRef("bomb.png", huge_png(20_000, 20_000)))
        assert error.code is ErrorCode.IMAGE_TOO_LARGE
        assert "20000 x 20000 = 400000000 pixels" in error.message and "100000000" in error.message

    @pytest.mark.parametrize("size", [(9_990, 10_000), (20_000, 20_000)])
    def test_pillows_own_limit_does_not_interfere(self, size):
        """The first is over Pillow's limit for a warning, the second over that for an error."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            header = probe_image(
                ImageRef("a", huge_png(*size)), ImageLimits(max_pixels=400_000_000)
            )
        assert (header.width, header.height) == size

    def test_pixels(self):
        data = encoded("PNG", (10, 10))
        assert decode_image(ImageRef("a", data), ImageLimits(max_pixels=100)).size == (10, 10)
        error = refusal(ImageRef("a", data), ImageLimits(max_pixels=99))
        assert error.code is ErrorCode.IMAGE_TOO_LARGE

    def test_bytes(self, tmp_path):
        data = encoded("PNG")
        path = tmp_path / "a.png"
        path.write_bytes(data)
        for ref in (ImageRef(str(path)), ImageRef("a", data)):
            assert decode_image(ref, ImageLimits(max_bytes=len(data))).size == (40, 30)
            error = refusal(ref, ImageLimits(max_bytes=len(data) - 1))
            assert error.code is ErrorCode.IMAGE_TOO_LARGE
            assert f"{len(data)} bytes" in error.message and f"{len(data) - 1} b" in error.message


SAMPLES = {
    "JPEG": encoded("JPEG"),
    "PNG": encoded("PNG"),
    "WEBP": encoded("WEBP", lossless=True),
    "GIF": encoded("GIF"),
    "BMP": encoded("BMP"),
    "TIFF": encoded("TIFF"),
    "LZW": encoded("TIFF", compression="tiff_lzw"),
    "AVIF": encoded("AVIF"),
}


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(SAMPLES)),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    near_start=st.booleans(),
    keep=st.none() | st.integers(0, 4000),
)
def test_damaged_files_raise_nothing_else(kind, changes, near_start, keep):
    data = bytearray(SAMPLES[kind])
    for position, value in changes:
        data[position % (200 if near_start else len(data))] = value
    ref = ImageRef("damaged", bytes(data[:keep]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (probe_image, decode_image):
            try:
                result = read(ref, ImageLimits(max_pixels=10**6))
            except RowError as error:
                assert error.message.startswith("damaged: ")
            else:
                assert result.width * result.height <= 10**6


def test_threads_decode_alike():
    refs = [ImageRef("a", data) for data in SAMPLES.values()] * 4
    expected = [decode_image(ref, LIMITS).tobytes() for ref in refs]
    found: list[list[bytes]] = []
    threads = [
        threading.Thread(
            target=lambda: found.append([decode_image(ref, LIMITS).tobytes() for ref in refs])
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
