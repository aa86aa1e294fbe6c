"""Images decoded lately, the least recently used dropped first."""

from __future__ import annotations

from collections import OrderedDict

from vlmbatch.config import ImageResolution
from vlmbatch.images.loading.process import Decoded
from vlmbatch.types import Page

# A path, for embedded images the digest of the bytes, the row's own resolution, and the fingerprint
# of the image processor for as many images as the row has, and the page of a document.
ImageKey = tuple[str | None, bytes | None, ImageResolution | None, str, Page | None]


class RecentImages:
    """At most ``max_bytes`` of pixels. Not thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._images: OrderedDict[ImageKey, Decoded] = OrderedDict()

    def get(self, key: ImageKey) -> Decoded | None:
        """The image, which becomes the most recently used."""
        found = self._images.get(key)
        if found is not None:
            self._images.move_to_end(key)
        return found

    def put(self, key: ImageKey, decoded: Decoded) -> None:
        self.discard(key)
        self._images[key] = decoded
        self._num_bytes += decoded.image.pixels.nbytes
        while self._num_bytes > self._max_bytes:
            _, dropped = self._images.popitem(last=False)
            self._num_bytes -= dropped.image.pixels.nbytes

    def discard(self, key: ImageKey) -> None:
        dropped = self._images.pop(key, None)
        if dropped is not None:
            self._num_bytes -= dropped.image.pixels.nbytes
