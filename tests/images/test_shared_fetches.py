"""Files behind URLs that several rows show: how often they are fetched, what is held of them."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Self

import pytest

from vlmbatch.config import ImageResolution
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.loading.shared_fetches import SharedFetches
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

    def fetch(self, url: str) -> bytes:
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
    fetches.fetch("first")  # comes alone
    assert store.begun.acquire(timeout=WAIT_S)
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
    assert store.fetched == {"first": 1, "a": 1, "gone": 1}


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
    """One image is fetched to know what size to expect; then as many as have room."""
    lock, held, peak = threading.Lock(), [0], [0]

    class TenBytes(Store):
        def fetch(self, url: str) -> bytes:
            super().fetch(url)
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
    assert 1 <= peak[0] <= 3


@pytest.mark.parametrize("first", [["a"], ["gone"] * 3])
def test_after_the_first_files_are_fetched_together(first: list[str]) -> None:
    """Also by threads that wait since before their sizes are known, or where none comes."""
    together = threading.Barrier(3)

    class Apart(Store):
        def fetch(self, url: str) -> bytes:
            data = super().fetch(url)
            if url not in first:
                together.wait(WAIT_S)
            return data

    store = Apart()
    fetches = SharedFetches(store, 2**20)
    with ThreadPoolExecutor(4) as threads:
        for url in first[1:]:
            assert threads.submit(fetches.fetch, url).exception(WAIT_S)
        store.open.clear()
        threads.submit(fetches.fetch, first[0])
        for _ in first:
            assert store.begun.acquire(timeout=WAIT_S)
        fetched = [threads.submit(fetches.fetch, url) for url in "bcd"]
        time.sleep(0.05)  # for them to wait
        store.open.set()
        assert {future.result(WAIT_S) for future in fetched} == {b"b", b"c", b"d"}


def test_nothing_is_fetched_once_it_is_closed() -> None:
    """Neither for threads that wait for room, nor for who asks later; what stalls is given up."""
    store, decoder = Store(), Decoder()
    store.open.clear()
    loader = UrlLoader(decoder, SharedFetches(store, 2**20))
    with ThreadPoolExecutor(2) as threads:
        stalled, waiting = (threads.submit(loader.submit, ImageRef(url=url)) for url in "ab")
        assert store.begun.acquire(timeout=WAIT_S)
        loader.close()
        assert outcome(stalled.result(WAIT_S)) == "a"
        given_up = waiting.result(WAIT_S), loader.submit(ImageRef(url="c"))
    assert all(isinstance(image.exception(WAIT_S), CancelledError) for image in given_up)
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
        def fetch(self, url: str) -> bytes:
            super().fetch(url)
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
