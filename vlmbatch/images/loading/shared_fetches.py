"""Files behind URLs, fetched once for all rows that ask for one at about the same time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Protocol

from vlmbatch.images.fetch_budget import FetchBudget, LargerError, Room
from vlmbatch.images.loading.recent import RecentImages

# For rows to come, in a run: those of one image follow each other, and what is at a URL may change.
KEEP_SECONDS = 60.0
_KEPT_SHARE = 4  # one part in so many
_ENTRY_BYTES = 1024  # of a file that is kept, beside its own


class Fetcher(Protocol):
    """Thread-safe."""

    def fetch(self, url: str, room: Room) -> bytes:
        """The image's file, of at most ``room.num_bytes``; waits for it.

        Raises:
            RowError: an image code.
            LargerError: there is no room for all of it; to be called again when there is.
        """
        ...

    def close(self) -> None:
        """Give up what may take long: who waits for it gets a CancelledError."""
        ...


@dataclass(eq=False, slots=True)
class Fetch:
    """A file that is being fetched, or was. ``begun``: by the monotonic clock, in seconds.

    ``room``: once it has come. ``uses``: by those who have not called ``end`` yet.
    """

    url: str
    begun: float
    data: Future[bytes] = field(default_factory=Future)
    room: Room | None = None
    uses: int = 1


@dataclass(frozen=True, slots=True)
class _Kept:
    """A file that nobody uses: a ``Fetch`` would hold on to what its users have made of it."""

    begun: float
    data: bytes


class SharedFetches:
    """Fetches with ``fetcher``, on the threads that ask.

    Who asks for a file that is under way waits for that one. What was fetched ``keep_s`` seconds
    ago, or earlier, is fetched anew. At most ``max_bytes`` are held, and one file more as
    ``FetchBudget`` says: those in use, and where files are kept, up to a quarter for who asks next.
    Threads wait for room, and then fetch; a file that turns out larger than that may be fetched
    again. What has failed has failed for all who wait, and is tried again for who asks next.
    """

    def __init__(self, fetcher: Fetcher, max_bytes: int, keep_s: float = 0.0) -> None:
        self._fetcher = fetcher
        self._keep_s = keep_s
        kept_bytes = max_bytes // _KEPT_SHARE if keep_s else 0
        self._budget = FetchBudget(max_bytes - kept_bytes)
        self._closed = False
        self._lock = threading.Lock()
        self._in_use: dict[str, Fetch] = {}
        self._kept: RecentImages[str, _Kept] = RecentImages(
            kept_bytes, lambda kept: len(kept.data) + _ENTRY_BYTES
        )

    def fetch(self, url: str) -> bytes:
        fetch = self.begin(url)
        try:
            return fetch.data.result()
        finally:
            self.end(fetch)

    def begin(self, url: str) -> Fetch:
        """The file at ``url``, for its user to wait for, and to ``end`` in the end.

        Unless it is under way or at hand it is fetched before this returns.
        """
        with self._lock:
            found = self._at_hand(url)
            if found is not None:
                return found
            fetch = self._in_use[url] = Fetch(url, time.monotonic())
        self._run(fetch)
        return fetch

    def end(self, fetch: Fetch) -> None:
        """One user less; the last one's bytes may be kept."""
        with self._lock:
            fetch.uses -= 1
            if fetch.uses:
                return
            if self._in_use.get(fetch.url) is fetch:
                del self._in_use[fetch.url]
                if self._keep_s:
                    self._kept.put(fetch.url, _Kept(fetch.begun, fetch.data.result()))
        if fetch.room is not None:
            self._budget.release(fetch.room)

    def close(self) -> None:
        """Nobody waits for room any more, and nothing is fetched: CancelledError for all."""
        self._closed = True
        self._budget.close()
        self._fetcher.close()

    def _at_hand(self, url: str) -> Fetch | None:
        found = self._in_use.get(url)
        if found is not None and (not found.data.done() or self._is_fresh(found.begun)):
            found.uses += 1
            return found
        kept = self._kept.pop(url)
        if kept is None or not self._is_fresh(kept.begun):
            return None
        room = self._budget.take_back(len(kept.data))
        found = self._in_use[url] = Fetch(url, kept.begun, room=room)
        found.data.set_result(kept.data)
        return found

    def _is_fresh(self, begun: float) -> bool:
        return time.monotonic() - begun < self._keep_s

    def _run(self, fetch: Fetch) -> None:
        room = self._budget.reserve()
        try:
            data = self._fetched(fetch.url, room)
        except BaseException as error:  # noqa: BLE001  raised again to whoever waits
            self._budget.release(room)
            with self._lock:
                if self._in_use.get(fetch.url) is fetch:
                    del self._in_use[fetch.url]
            fetch.data.set_exception(error)
            return
        self._budget.settle(room, len(data))
        fetch.room = room
        fetch.data.set_result(data)

    def _fetched(self, url: str, room: Room) -> bytes:
        while not self._closed:
            try:
                return self._fetcher.fetch(url, room)
            except LargerError as error:
                needed = error.num_bytes
            self._budget.enlarge(room, needed)  # out here: the frames of the error have the bytes
        raise CancelledError
