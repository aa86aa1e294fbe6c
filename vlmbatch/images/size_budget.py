"""How many bytes of images may be held whose sizes are known late, for several threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from vlmbatch.images.mean_size import MeanSize


class SizeBudget:
    """Lets images in whose sizes are not known before they are decoded.

    More than the limit comes alone. A row's images are reserved, then begun, then settled and at
    last released.
    """

    def __init__(self, limit: int, image_bytes: int) -> None:
        """``image_bytes``: what the first images are taken to have."""
        self._limit = limit
        self._used = 0
        self._begun = 0  # of these, without what is only reserved
        self._closed = False
        self._changed = threading.Condition()
        self._mean = MeanSize(image_bytes)

    def reserve(self, num_images: int) -> int:
        """Wait for room for so many images; the bytes that they are taken to have."""
        with self._changed:
            # The mean anew each time: what the first images have is known to those that wait.
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or self._used == 0
                    or self._used + int(num_images * self._mean.bytes) <= self._limit
                )
            )
            size = int(num_images * self._mean.bytes)
            self._used += size
        return size

    def begin(self, reserved: int) -> None:
        """Wait until what others have begun is within the limit.

        Not for what they have only reserved: a row that waits for its thread may have all of that,
        and this one have the thread.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._begun <= self._limit)
            self._begun += reserved

    def settle(self, reserved: int, sizes: Sequence[int]) -> None:
        """Put the bytes that a row's images have in the place of those ``reserved`` for them."""
        with self._changed:
            for size in sizes:
                self._mean.add(size)
            self._used += sum(sizes) - reserved
            self._begun += sum(sizes) - reserved
            self._changed.notify_all()

    def release(self, size: int) -> None:
        """The engine has taken so many bytes."""
        if size:
            with self._changed:
                self._used -= size
                self._begun -= size
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
