"""How many bytes of fetched files may be held, which have any size, for several threads."""

from __future__ import annotations

import threading
from collections import deque

from vlmbatch.images.mean_size import MeanSize

_GUESS = 2**20  # bytes of a file, before one has come
_LEAST = 2**16  # that are reserved: a larger file among small ones may have to be fetched again
_SHARE = 8  # one part in so many of a small limit, so that one that stalls leaves room for others


class LargerError(Exception):
    """A file is larger than its room, and there is no more now; ``num_bytes``: what to wait for."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self.num_bytes = num_bytes


class Room:
    """Bytes reserved for a file: ``num_bytes`` of them."""

    def __init__(self, budget: FetchBudget, num_bytes: int) -> None:
        self._budget = budget
        self.num_bytes = num_bytes

    def enlarge(self, num_bytes: int) -> None:
        """Reserve so many, without waiting.

        Raises:
            LargerError: there is no room. It asks for twice the bytes at least, so that a file that
                is larger each time is not tried often.
        """
        if num_bytes > self.num_bytes and not self._budget.enlarge_now(self, num_bytes):
            raise LargerError(max(num_bytes, 2 * self.num_bytes))


class FetchBudget:
    """Lets files in before their sizes are known.

    A file reserves twice what those before it had on average, at first a guess, at most half of the
    limit, and waits until that is within it. Where it turns out larger it needs more: at once if
    there is room, and else it waits its turn, with nothing held but what it has reserved. Whose
    turn it is need not wait for room: so one file at a time may go beyond the limit, until it is
    released, and nobody waits for one that waits itself. All that is reserved is at most the limit
    and one file more, and those that are taken back; a file that comes without a length is a chunk
    ahead of its room.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._closed = False
        self._changed = threading.Condition()
        self._mean = MeanSize()
        self._waiting: deque[Room] = deque()  # to be enlarged
        self._beyond: Room | None = None  # which may go beyond the limit, whenever that is exceeded

    def reserve(self) -> Room:
        """Wait for room for one more file."""
        with self._changed:
            # What to expect anew each time: what the first have is known to those that wait.
            self._changed.wait_for(lambda: self._closed or self._fits(self._expected()))
            room = Room(self, self._expected())
            self._used += room.num_bytes
        return room

    def enlarge(self, room: Room, num_bytes: int) -> None:
        """Wait until so many bytes can be reserved in the place of those that are."""
        with self._changed:
            self._waiting.append(room)
            try:
                self._changed.wait_for(lambda: self._closed or self._may_enlarge(room, num_bytes))
            finally:
                self._waiting.remove(room)
                self._changed.notify_all()  # it is another's turn
            if not self._fits(num_bytes - room.num_bytes):
                self._beyond = room
            self._resize(room, num_bytes)

    def enlarge_now(self, room: Room, num_bytes: int) -> bool:
        """As ``enlarge``, if that takes no waiting; whether it does not."""
        with self._changed:
            may = room is self._beyond or self._fits(num_bytes - room.num_bytes)
            if may:
                self._resize(room, num_bytes)
        return may

    def settle(self, room: Room, num_bytes: int) -> None:
        """The file has come, and has so many bytes."""
        with self._changed:
            self._mean.add(num_bytes)
            self._resize(room, num_bytes)

    def take_back(self, num_bytes: int) -> Room:
        """Room for a file that was held all along, without waiting."""
        with self._changed:
            self._used += num_bytes
        return Room(self, num_bytes)

    def release(self, room: Room) -> None:
        """The file is held no more, or does not come."""
        with self._changed:
            self._resize(room, 0)

    def close(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _expected(self) -> int:
        least = max(1, self._limit // _SHARE)
        if self._mean.num_added == 0:
            return min(_GUESS, least)
        most = max(1, self._limit // 2)  # for one that stalls to leave room here too
        return min(max(int(2 * self._mean.bytes), min(_LEAST, least)), most)

    def _fits(self, num_bytes: int) -> bool:
        return self._used + num_bytes <= self._limit

    def _may_enlarge(self, room: Room, num_bytes: int) -> bool:
        if room is self._beyond or self._fits(num_bytes - room.num_bytes):
            return True
        return room is self._waiting[0] and self._used <= self._limit

    def _resize(self, room: Room, num_bytes: int) -> None:
        self._used += num_bytes - room.num_bytes
        room.num_bytes = num_bytes
        self._changed.notify_all()
