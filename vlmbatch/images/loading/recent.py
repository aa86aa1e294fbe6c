"""Images used lately, the least recently used dropped first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from vlmbatch.config import ImageResolution
from vlmbatch.types import Page

# A path, for embedded images the digest of the bytes, the row's own resolution, and the fingerprint
# of the image processor for as many images as the row has, and the page of a document.
ImageKey = tuple[str | None, bytes | None, ImageResolution | None, str, Page | None]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class RecentImages(Generic[K, V]):
    """At most ``max_bytes`` of images, each of ``num_bytes(image)``. Not thread-safe."""

    def __init__(self, max_bytes: int, num_bytes: Callable[[V], int]) -> None:
        self._max_bytes = max_bytes
        self._bytes_of = num_bytes
        self._num_bytes = 0
        self._images: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The image, which becomes the most recently used."""
        found = self._images.get(key)
        if found is not None:
            self._images.move_to_end(key)
        return found

    def put(self, key: K, image: V) -> None:
        self.pop(key)
        self._images[key] = image
        self._num_bytes += self._bytes_of(image)
        while self._num_bytes > self._max_bytes:
            _, dropped = self._images.popitem(last=False)
            self._num_bytes -= self._bytes_of(dropped)

    def pop(self, key: K) -> V | None:
        """Take an image out, if it is there."""
        dropped = self._images.pop(key, None)
        if dropped is not None:
            self._num_bytes -= self._bytes_of(dropped)
        return dropped
