"""How many bytes of images may be held whose sizes are known late, for several threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence

_MEMORY_IMAGES = 256  # whose mean size is expected of the next


class SizeBudget:
    """Lets images in whose sizes are not known before they are fetched or decoded.

    More than the limit comes alone.
    """

    def __init__(self, limit: int, image_bytes: int) -> None:
        """``image_bytes``: what the first images are taken to have."""
        self._limit = limit
        self._used = 0
        self._closed = False
        self._changed = threading.Condition()
        self._mean = float(image_bytes)
        self._num_settled = 0

    def reserve(self, num_images: int) -> int:
        """Wait for room for so many images; the bytes that they are taken to have."""
        with self._changed:
            # The mean anew each time: what the first images have is known to those that wait.
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or self._used == 0
                    or self._used + int(num_images * self._mean) <= self._limit
                )
            )
            size = int(num_images * self._mean)
            self._used += size
        return size

    def wait_for_room(self, reserved: int) -> None:
        """Wait until all is within the limit, but for the bytes that the caller has reserved."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._used - reserved <= self._limit)

    def settle(self, reserved: int, sizes: Sequence[int]) -> None:
        """Put the bytes that a row's images have in the place of those ``reserved`` for them."""
        with self._changed:
            for size in sizes:
                self._num_settled += 1
                share = 1 / min(self._num_settled, _MEMORY_IMAGES)
                self._mean += share * (size - self._mean)
            self._used += sum(sizes) - reserved
            self._changed.notify_all()

    def give_up(self, reserved: int) -> None:
        """An image for which so many bytes are reserved does not come.

        While no size is known half as many are reserved for the next: such images may take long,
        and would be tried one by one.
        """
        with self._changed:
            if not self._num_settled:
                self._mean /= 2
            self._used -= reserved
            self._changed.notify_all()

    def release(self, size: int) -> None:
        """The engine has taken so many bytes."""
        if size:
            with self._changed:
                self._used -= size
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
