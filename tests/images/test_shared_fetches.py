"""Files behind URLs that several rows show: how often they are fetched, what is held of them."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.config import ImageResolution
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.fetch_budget import LargerError, Room
from vlmbatch.images.loading.shared_fetches import Fetch, SharedFetches
from vlmbatch.images.loading.url_loader import UrlLoader
from vlmbatch.types import ImageInput, ImageRef

WAIT_S = 10


class Store:
    """Files that have their URL as content; ``gone`` has none. Fetches wait for ``open``."""

    def __init__(self) -> None:
        self.fetched: Counter[str] = Counter()
        self.begun = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()

    def fetch(self, url: str, room: Room) -> bytes:
        self.fetched[url] += 1
        self.begun.release()
        assert self.open.wait(WAIT_S)
        if url == "gone":
            raise RowError(ErrorCode.IMAGE_MISSING, "gone")
        return url.encode()

    def close(self) -> None:
        self.open.set()


class Decoder:
    """Fails for every image with its content; ``slowly``: when ``decode`` is called."""

    def __init__(self, *, slowly: bool = False) -> None:
        self.waiting: list[tuple[ImageRef, Future[ImageInput]]] = []
        self.slowly = slowly

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        future: Future[ImageInput] = Future()
        self.waiting.append((ref, future))
        if not self.slowly:
            self.decode()
        return future

    def decode(self) -> None:
        while self.waiting:
            ref, future = self.waiting.pop()
            assert ref.data is not None
            future.set_exception(RowError(ErrorCode.IMAGE_UNREADABLE, ref.data.decode()))

    def wait_ready(self) -> None:
        pass

    def close(self) -> None:
        pass


def outcome(image: Future[ImageInput]) -> str:
    return str(image.exception(WAIT_S))


def test_rows_join_a_fetch_under_way() -> None:
    """Without waiting for it, each with its own resolution; an error is that of each."""
    store, decoder = Store(), Decoder(slowly=True)
    fetches = SharedFetches(store, 2**20)
    loader = UrlLoader(decoder, fetches)
    store.open.clear()
    with ThreadPoolExecutor(2) as threads:
        first = [threads.submit(loader.submit, ImageRef(url=url)) for url in ("a", "gone")]
        for _ in first:
            assert store.begun.acquire(timeout=WAIT_S)
        small = ImageResolution(max_pixels=1000)
        joined = [loader.submit(ImageRef(url="a", resolution=at)) for at in (None, small)]
        lost = loader.submit(ImageRef(url="gone"))
        assert not lost.done()
        store.open.set()
        images = [future.result(WAIT_S) for future in first]
    assert outcome(lost) == outcome(images[1]) == "gone"
    assert [ref.resolution for ref, _ in decoder.waiting].count(small) == 1
    decoder.decode()
    assert {outcome(image) for image in (images[0], *joined)} == {"a"}
    assert store.fetched == {"a": 1, "gone": 1}


def test_rows_that_follow_share_what_was_fetched_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr("vlmbatch.images.loading.shared_fetches.time.monotonic", lambda: clock[0])
    store, decoder = Store(), Decoder()
    fetches = SharedFetches(store, 2**20, keep_s=60)
    loader = UrlLoader(decoder, fetches)
    for _ in range(8):
        assert outcome(loader.submit(ImageRef(url="a"))) == "a"
        clock[0] += 7
    assert store.fetched == {"a": 1}
    clock[0] += 7
    assert fetches.fetch("a") == b"a" and store.fetched == {"a": 2}
    for times in (1, 2):  # what has failed is tried again
        assert outcome(loader.submit(ImageRef(url="gone"))) == "gone"
        assert store.fetched["gone"] == times


def test_a_server_fetches_for_every_request_that_does_not_meet_another() -> None:
    store = Store()
    decoder = Decoder(slowly=True)
    loader = UrlLoader(decoder, SharedFetches(store, 2**20))
    images = [loader.submit(ImageRef(url="a")) for _ in range(2)]  # though the first is in use
    decoder.decode()
    assert [outcome(image) for image in images] == ["a", "a"]
    assert store.fetched == {"a": 2}


def test_what_is_fetched_and_not_decoded_has_a_limit() -> None:
    """As many as have room, and one more."""
    lock, held, peak = threading.Lock(), [0], [0]

    class TenBytes(Store):
        def fetch(self, url: str, room: Room) -> bytes:
            super().fetch(url, room)
            room.enlarge(10)
            with lock:
                held[0] += 1
                peak[0] = max(*peak, *held)
            return bytes(10)

    class Busy(Decoder):
        def submit(self, ref: ImageRef) -> Future[ImageInput]:
            return decoders.submit(self.fail)

        def fail(self) -> ImageInput:
            with lock:
                held[0] -= 1
            raise RowError(ErrorCode.IMAGE_UNREADABLE, "no image")

    with ThreadPoolExecutor(1) as decoders, ThreadPoolExecutor(8) as threads:
        loader = UrlLoader(Busy(), SharedFetches(TenBytes(), 35))
        refs = [ImageRef(url="gone" if n % 7 == 0 else str(n)) for n in range(100)]
        errors = [outcome(image) for image in threads.map(loader.submit, refs)]
    assert errors.count("gone") == 15 and held == [0]
    assert 1 <= peak[0] <= 4


@pytest.mark.parametrize("sizes", [[], [2**20]])
def test_a_file_that_stalls_holds_up_no_others(sizes: list[int]) -> None:
    """Though it is the first, and no size is known; or those before it had all of the room."""
    together = threading.Barrier(3)

    class Stalling(Store):
        def fetch(self, url: str, room: Room) -> bytes:
            if url == "stalls":
                return super().fetch(url, room)
            if url.isdigit():
                return bytes(int(url))
            if not sizes:
                together.wait(WAIT_S)
            return url.encode()

    store = Stalling()
    store.open.clear()
    fetches = SharedFetches(store, 2**20)
    for size in sizes:
        fetches.fetch(str(size))
    with ThreadPoolExecutor(4) as threads:
        stalled = threads.submit(fetches.fetch, "stalls")
        assert store.begun.acquire(timeout=WAIT_S)
        assert {*threads.map(fetches.fetch, "bcd", timeout=WAIT_S)} == {b"b", b"c", b"d"}
        store.open.set()
        assert stalled.result(WAIT_S) == b"stalls"


class Sizes:
    """Files of the sizes that their URLs say, and how many bytes of them are held.

    A size is told at the beginning, asked for, or found out as bytes drip in.
    """

    def __init__(self, failing: int) -> None:
        self._lock = threading.Lock()
        self._failing = failing
        self.held = self.peak = self.fetches = 0

    def hold(self, num_bytes: int) -> None:
        with self._lock:
            self.held += num_bytes
            self.peak = max(self.peak, self.held)

    def fetch(self, url: str, room: Room) -> bytes:
        number, size, how = url.split()
        self.fetches += 1
        taken = min(int(size), room.num_bytes)
        self.hold(taken)
        time.sleep(0.0002)  # for others to come meanwhile
        try:
            self._come(int(size), taken, how, room)
            if int(number) == self._failing:
                raise RowError(ErrorCode.IMAGE_FETCH_FAILED, "cut")
        except (LargerError, RowError):
            self.hold(-taken)
            raise
        self.hold(int(size) - taken)
        time.sleep(0.0002)
        return bytes(int(size))

    def _come(self, size: int, taken: int, how: str, room: Room) -> None:
        if how == "told":
            room.enlarge(size)
        elif how == "asked" and taken < size:
            raise LargerError(2 * taken)
        while taken < size:
            taken += 1
            if taken > room.num_bytes:
                room.enlarge(min(2 * taken, size))

    def close(self) -> None:
        pass


@given(
    st.lists(
        st.tuples(
            st.integers(0, 40) | st.integers(200, 300), st.sampled_from(["told", "asked", "drips"])
        ),
        max_size=30,
    ),
    st.sampled_from([8, 64, 200]),
    st.integers(1, 8),
    st.integers(0, 30),
)
def test_all_files_come_and_what_is_held_has_a_bound(
    files: list[tuple[int, str]], limit: int, num_threads: int, failing: int
) -> None:
    """Whatever they have, and however that turns out: the limit, and one file more."""
    store = Sizes(failing)
    fetches = SharedFetches(store, limit)

    def decode(fetch: Fetch) -> None:
        store.hold(-len(fetch.data.result()))
        fetches.end(fetch)

    def load(url: str) -> bool:
        fetch = fetches.begin(url)
        if fetch.data.exception() is not None:
            return False
        decoders.submit(decode, fetch)
        return True

    urls = [f"{number} {size} {how}" for number, (size, how) in enumerate(files)]
    with (
        ThreadPoolExecutor(1) as decoders,
        ThreadPoolExecutor(num_threads) as threads,
        closing(fetches),
    ):
        came = [*threads.map(load, urls, timeout=WAIT_S)]
    assert came == [number != failing for number in range(len(files))]
    assert store.held == 0
    assert store.peak <= limit + max((size for size, _ in files), default=0)
    assert fetches._budget._used == 0
    assert store.fetches <= 12 * len(files)


def test_nothing_is_fetched_once_it_is_closed() -> None:
    """Neither for threads that wait for room, nor for who asks later; what stalls is given up."""
    together = threading.Barrier(2)

    class Larger(Store):
        def fetch(self, url: str, room: Room) -> bytes:
            if room.num_bytes < 2**20:
                together.wait(WAIT_S)
                raise LargerError(2**20)
            return super().fetch(url, room)

    store = Larger()
    store.open.clear()
    loader = UrlLoader(Decoder(), SharedFetches(store, 2**20))
    with ThreadPoolExecutor(3) as threads:
        begun = [threads.submit(loader.submit, ImageRef(url=url)) for url in "ab"]
        assert store.begun.acquire(timeout=WAIT_S)  # for one of them there is room
        begun.append(threads.submit(loader.submit, ImageRef(url="c")))
        loader.close()
        images = [future.result(WAIT_S) for future in begun]
    images.append(loader.submit(ImageRef(url="d")))
    given_up = [isinstance(image.exception(WAIT_S), CancelledError) for image in images]
    assert sorted(given_up[:2]) == [False, True] and given_up[2:] == [True, True]
    assert store.fetched.total() == 1


def test_what_is_kept_has_a_limit() -> None:
    """A quarter of what may be held, and nothing of what has been made of it."""
    alive: Counter[str] = Counter()

    class Data(bytes):
        def __new__(cls, url: str) -> Self:
            alive[url] += 1
            return super().__new__(cls, url.encode() * 5_000)

        def __del__(self) -> None:
            alive[self[:1].decode()] -= 1

    class Large(Store):
        def fetch(self, url: str, room: Room) -> bytes:
            super().fetch(url, room)
            return Data(url)

    store = Large()
    fetches = SharedFetches(store, 50_000, keep_s=60)
    for url in "abcdcda":
        fetches.fetch(url)
    assert +alive == {"d": 1, "a": 1}
    assert store.fetched == {"a": 2, "b": 1, "c": 1, "d": 1}
    loader = UrlLoader(Decoder(), fetches)
    image = loader.submit(ImageRef(url="d"))
    held = weakref.ref(image)
    assert store.fetched["d"] == 1
    del image
    assert held() is None
