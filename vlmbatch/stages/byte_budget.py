"""How many bytes of images that rows bring along may be in work and wait, for several threads."""

from __future__ import annotations

import threading

from vlmbatch.images.held_images import HeldImages
from vlmbatch.types import ImageRef


class EncodedBudget:
    """Lets rows' embedded images in up to a limit of bytes; a row with more than the limit alone.

    Bytes that rows share count once: they are freed with the last of them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = HeldImages()
        self._closed = False
        self._changed = threading.Condition()

    def acquire(self, images: tuple[ImageRef, ...]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(images))
            self._held.add(images)

    def _has_room(self, images: tuple[ImageRef, ...]) -> bool:
        held, new = self._held.num_bytes, self._held.new_bytes(images)
        return held == 0 or new == 0 or held + new <= self._limit

    def release(self, images: tuple[ImageRef, ...]) -> None:
        with self._changed:
            self._held.remove(images)
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
