"""Which fetcher an image is left to, and until when."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress

import pytest

from vlmbatch.images.cancellable import CancellableCalls
from vlmbatch.images.fetch import ImageFetcher
from vlmbatch.images.store_fetch import StoreFetcher
from vlmbatch.images.url_fetcher import UrlFetcher
from vlmbatch.images.urls import AllowedDomains

WAIT_S = 10


@pytest.mark.parametrize("method", ["fetch", "fetch_start"])
@pytest.mark.parametrize(
    ("kind", "url"), [(ImageFetcher, "https://a.example/a.jpg"), (StoreFetcher, "s3://a/a.jpg")]
)
def test_closing_gives_up_what_stalls(
    monkeypatch: pytest.MonkeyPatch, kind: type, url: str, method: str
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def stall(fetcher: object, url: str, num_bytes: object) -> bytes:
        begun.set()
        ended.wait(WAIT_S)
        return b"late"

    monkeypatch.setattr(kind, method, stall)
    fetcher = UrlFetcher(AllowedDomains(), 1000)
    with ThreadPoolExecutor(1) as threads:
        stalled = threads.submit(getattr(fetcher, method), url, 1000)
        assert begun.wait(WAIT_S)
        fetcher.close()
        error = stalled.exception(WAIT_S)
        assert not ended.is_set()
        ended.set()
    assert isinstance(error, CancelledError)
    with pytest.raises(CancelledError):
        getattr(fetcher, method)(url, 1000)


class Body:
    """What a call has read when it fails."""


def test_an_error_takes_along_what_its_frames_hold() -> None:
    """And does not leave it to the garbage collector, which may come when memory has run out."""
    held: list[weakref.ref[Body]] = []
    caller: list[threading.Thread] = []

    def fail() -> None:
        caller.append(threading.current_thread())
        body = Body()
        held.append(weakref.ref(body))
        raise ValueError

    gc.disable()
    try:
        with suppress(ValueError):
            CancellableCalls().run(fail)
        caller[0].join(WAIT_S)
        assert held[0]() is None
    finally:
        gc.enable()
