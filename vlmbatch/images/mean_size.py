"""What size to expect of the next image."""

from __future__ import annotations

_MEMORY_IMAGES = 256


class MeanSize:
    """The mean of sizes, ``bytes``: of about the last 256, ``first`` before any is added."""

    def __init__(self, first: int = 0) -> None:
        self.bytes = float(first)
        self.num_added = 0

    def add(self, size: int) -> None:
        self.num_added += 1
        self.bytes += (size - self.bytes) / min(self.num_added, _MEMORY_IMAGES)
