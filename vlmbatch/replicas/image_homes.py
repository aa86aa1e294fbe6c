"""Which engine has an image in its caches, as far as can be known from where rows were sent."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable

from vlmbatch.replicas.member import Member
from vlmbatch.replicas.messages import SharedImage


class ImageHomes:
    """The engines of the last ``most`` images."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._homes: OrderedDict[bytes, Member] = OrderedDict()  # by content hash

    def find(self, images: Iterable[SharedImage], among: Collection[Member]) -> Member | None:
        """One of these engines that has one of the images."""
        homes = (self._homes.get(image.content_hash) for image in images)
        return next((home for home in homes if home in among), None)

    def remember(self, images: Iterable[SharedImage], member: Member) -> None:
        """Rows with these images go to ``member`` from now on."""
        for image in images:
            self._homes[image.content_hash] = member
            self._homes.move_to_end(image.content_hash)
        while len(self._homes) > self._most:
            self._homes.popitem(last=False)

    def forget(self, member: Member) -> None:
        """Its caches are empty."""
        for image in [image for image, home in self._homes.items() if home is member]:
            del self._homes[image]

    def clear(self) -> None:
        self._homes.clear()
