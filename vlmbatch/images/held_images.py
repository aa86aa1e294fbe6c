"""What embedded images take while their rows wait: those that rows share, once."""

from __future__ import annotations

from collections.abc import Iterable

from vlmbatch.types import ImageRef


class HeldImages:
    """The distinct bytes objects that images hold on to, and how many images hold each.

    Rows read from one dictionary of a Parquet file share their bytes. Not thread-safe.
    """

    def __init__(self) -> None:
        self._uses: dict[int, int] = {}  # by the identity of an object that its images keep alive
        self.num_bytes = 0

    def new_bytes(self, images: Iterable[ImageRef]) -> int:
        """By how much ``num_bytes`` would grow with these."""
        data = {id(image.data): image.num_bytes for image in images}
        return sum(size for key, size in data.items() if key not in self._uses)

    def add(self, images: Iterable[ImageRef]) -> None:
        for image in images:
            if image.data is None:
                continue
            uses = self._uses.get(id(image.data), 0)
            self._uses[id(image.data)] = uses + 1
            if uses == 0:
                self.num_bytes += image.num_bytes

    def remove(self, images: Iterable[ImageRef]) -> None:
        """Take out images that were put in before, and are still what they were."""
        for image in images:
            if image.data is None:
                continue
            uses = self._uses.pop(id(image.data))
            if uses > 1:
                self._uses[id(image.data)] = uses - 1
            else:
                self.num_bytes -= image.num_bytes
