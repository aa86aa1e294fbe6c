"""What the header of an image behind a URL says, from the first bytes of its file."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from vlmbatch.config import ImageLimits
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.decode import ImageHeader, probe_image
from vlmbatch.images.formats import HEAD_BYTES, known_format
from vlmbatch.types import ImageRef

# A header with a thumbnail and colours fits; one of other programs' notes, mostly the second.
_STARTS = (2**16, 2**20)


class StartFetcher(Protocol):
    """Thread-safe."""

    def fetch(self, url: str) -> bytes:
        """The image's file; waits for it. Raises RowError."""
        ...

    def fetch_start(self, url: str, num_bytes: int) -> bytes:
        """The first bytes of it, or all of a smaller one. Raises RowError."""
        ...


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
        try:
            return _probe(ref, data, limits)
        except RowError as error:
            if error.code != ErrorCode.IMAGE_UNREADABLE:
                raise
    return _probe(ref, fetcher.fetch(ref.url), limits)


def _probe(ref: ImageRef, data: bytes, limits: ImageLimits) -> ImageHeader:
    return probe_image(replace(ref, path=ref.url, data=data, url=None), limits)
