"""Headers of images behind URLs: as of the whole file, and no more is read than they need."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmbatch.config import ImageLimits
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.decode import probe_image
from vlmbatch.images.url_header import UrlHeaders, probe_url
from vlmbatch.types import ImageRef

LIMITS = ImageLimits(max_pixels=10**6)
URL = "s3://photos/a"
LONG = 3 * 2**20  # behind the header
LOSSLESS: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


class Starts:
    """What fetches ``data``; ``asked``: for how much of it, None for all."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.asked: list[int | None] = []

    def fetch(self, url: str) -> bytes:
        assert url == URL
        self.asked.append(None)
        return self._data

    def fetch_start(self, url: str, num_bytes: int) -> bytes:
        assert url == URL
        self.asked.append(num_bytes)
        return self._data[:num_bytes]

    def close(self) -> None:
        pass


def encoded(kind: str, comment: int = 0, size: tuple[int, int] = (30, 20)) -> bytes:
    """An image that lies on its side; of a JPEG with so many bytes of comments in its header."""
    file = io.BytesIO()
    image = Image.new("RGB", size, (9, 8, 7))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(file, kind, exif=exif, **({"quality": 90} if kind == "JPEG" else {}))
    data = file.getvalue()
    segments = b"".join(
        b"\xff\xfe" + (length + 2).to_bytes(2, "big") + bytes(length)
        for length in [60_000] * (comment // 60_000)
    )
    return data[:2] + segments + data[2:] if kind == "JPEG" else data


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("more", [0, LONG])
def test_it_is_that_of_the_file(kind: str, more: int) -> None:
    data = encoded(kind) + bytes(more)
    fetcher = Starts(data)
    assert probe_url(ImageRef(url=URL), fetcher, LIMITS) == probe_image(ImageRef(URL, data), LIMITS)
    assert (None in fetcher.asked) == bool(more and kind == "TIFF")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_it_is_that_of_a_file_with_many_pixels(kind: str) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (500, 400, 3), np.uint8)
    Image.fromarray(noise).save(file, kind, **LOSSLESS.get(kind, {}))
    fetcher = Starts(file.getvalue())
    header = probe_url(ImageRef(url=URL), fetcher, LIMITS)
    assert (header.width, header.height) == (400, 500)
    assert fetcher.asked[0] == 2**16 < len(file.getvalue())
    assert len(fetcher.asked) == 1 or kind in ("TIFF", "WEBP")


@pytest.mark.parametrize(
    ("comment", "asked"),
    [
        (0, [2**16]),
        (600_000, [2**16, 2**20]),
        (3_000_000, [2**16, 2**20, None]),
    ],
)
def test_long_headers(comment: int, asked: list[int | None]) -> None:
    fetcher = Starts(encoded("JPEG", comment) + bytes(LONG))
    header = probe_url(ImageRef(url=URL), fetcher, LIMITS)
    assert (header.width, header.height) == (20, 30)
    assert fetcher.asked == asked


@pytest.mark.parametrize(
    ("data", "code", "asked"),
    [
        (b"<!doctype html>" + bytes(LONG), ErrorCode.IMAGE_UNREADABLE, [2**16]),
        (encoded("JPEG")[:30], ErrorCode.IMAGE_UNREADABLE, [2**16]),
        (encoded("PNG", size=(2000, 2000)) + bytes(LONG), ErrorCode.IMAGE_TOO_LARGE, [2**16]),
        (b"\xff\xd8\xff" + bytes(LONG), ErrorCode.IMAGE_UNREADABLE, [2**16, 2**20, None]),
        (b"", ErrorCode.IMAGE_UNREADABLE, [2**16]),
    ],
)
def test_what_is_wrong(data: bytes, code: ErrorCode, asked: list[int | None]) -> None:
    fetcher = Starts(data)
    with pytest.raises(RowError) as caught:
        probe_url(ImageRef(url=URL), fetcher, LIMITS)
    assert caught.value.code == code and URL in caught.value.message
    assert fetcher.asked == asked


def test_rows_share_a_header_and_each_is_told_of_a_failure() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Starts):
        fails = True

        def fetch_start(self, url: str, num_bytes: int) -> bytes:
            begun.set()
            assert go_on.wait(10)
            if self.fails:
                raise RowError(ErrorCode.IMAGE_FETCH_FAILED, "busy")
            return super().fetch_start(URL, num_bytes)

    fetcher = Slow(encoded("PNG"))
    headers = UrlHeaders(fetcher, LIMITS, max_headers=2)

    def outcome() -> object:
        try:
            return headers.of(URL)
        except RowError as error:
            return error.message

    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(outcome)
        assert begun.wait(10)
        others = [threads.submit(outcome) for _ in range(3)]
        go_on.set()
        found = {future.result(10) for future in (first, *others)}
    assert found == {"busy"}
    fetcher.fails = False
    assert len({headers.of(url) for url in (URL, URL, "b", URL, "c", URL)}) == 1
    assert len(fetcher.asked) == 3
    headers.of("b")  # which was not used for the longest
    assert len(fetcher.asked) == 4
