"""What the header of an image behind a URL says, from the first bytes of its file."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

from vlmbatch.config import ImageLimits
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.decode import ImageHeader, probe_image
from vlmbatch.images.formats import HEAD_BYTES, known_format
from vlmbatch.images.iso_boxes import with_last_box_whole
from vlmbatch.types import ImageRef

# A header with a thumbnail and colours fits; one of other programs' notes, mostly the second.
_STARTS = (2**16, 2**20)
_MAX_FILLED = 2**25  # bytes of zeros in the place of an AVIF's pixels, in each thread that fetches


class StartFetcher(Protocol):
    """Thread-safe."""

    def fetch(self, url: str) -> bytes:
        """The image's file; waits for it. Raises RowError."""
        ...

    def fetch_start(self, url: str, num_bytes: int) -> bytes:
        """The first bytes of it, or all of a smaller one. Raises RowError."""
        ...

    def close(self) -> None:
        """Give up what may take long: who waits for it gets a CancelledError."""
        ...


class UrlHeaders:
    """Headers of images behind URLs, each read once for all rows that ask; thread-safe.

    The ``max_headers`` that were used last are kept. One that could not be read is an error of all
    who waited for it, and is tried again for who asks next.
    """

    def __init__(self, fetcher: StartFetcher, limits: ImageLimits, max_headers: int) -> None:
        self._fetcher = fetcher
        self._limits = limits
        self._max_headers = max_headers
        self._lock = threading.Lock()
        self._headers: OrderedDict[str, Future[ImageHeader]] = OrderedDict()

    def of(self, url: str) -> ImageHeader:
        """The header at ``url``; waits for it. Raises RowError, as ``probe_url``."""
        with self._lock:
            header = self._headers.get(url)
            is_new = header is None
            if header is None:
                header = self._headers[url] = Future()
            self._headers.move_to_end(url)
            if len(self._headers) > self._max_headers:
                self._headers.popitem(last=False)
        if is_new:
            self._read(url, header)
        return header.result()

    def close(self) -> None:
        """Give up what is being read: who waits for it gets a CancelledError."""
        self._fetcher.close()

    def _read(self, url: str, header: Future[ImageHeader]) -> None:
        try:
            header.set_result(probe_url(ImageRef(url=url), self._fetcher, self._limits))
        except BaseException as error:  # noqa: BLE001  raised again to whoever waits
            with self._lock:
                if self._headers.get(url) is header:
                    del self._headers[url]
            header.set_exception(error)


def probe_url(ref: ImageRef, fetcher: StartFetcher, limits: ImageLimits) -> ImageHeader:
    """As ``probe_image``, of an image behind a URL: more is read where its header is longer.

    Raises:
        RowError: an image code, also of what cannot be fetched.
    """
    assert ref.url is not None
    for num_bytes in _STARTS:
        data = fetcher.fetch_start(ref.url, num_bytes)
        name = known_format(data[:HEAD_BYTES])
        if len(data) < num_bytes or name is None:
            return _probe(ref, data, limits)
        if name == "TIFF":  # whose header may be anywhere
            break
        if name == "AVIF":  # whose decoder asks first whether all of it is there
            data = with_last_box_whole(data, _MAX_FILLED)
        try:
            return _probe(ref, data, limits)
        except RowError as error:
            if error.code != ErrorCode.IMAGE_UNREADABLE:
                raise
    return _probe(ref, fetcher.fetch(ref.url), limits)


def _probe(ref: ImageRef, data: bytes, limits: ImageLimits) -> ImageHeader:
    return probe_image(replace(ref, path=ref.url, data=data, url=None), limits)
