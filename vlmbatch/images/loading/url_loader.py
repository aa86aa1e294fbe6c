"""Images behind URLs, for a loader that knows files and bytes only."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

from vlmbatch.errors import RowError
from vlmbatch.images.loading.loader import ImageLoader
from vlmbatch.images.size_budget import SizeBudget
from vlmbatch.types import ImageInput, ImageRef


class Fetcher(Protocol):
    """Thread-safe."""

    def fetch(self, url: str) -> bytes:
        """The image's file; waits for it. Raises RowError."""
        ...


class UrlLoader:
    """Fetches on the thread that asks, and hands the bytes to ``loader``; an ``ImageLoader``.

    At most ``max_bytes`` are fetched and not yet decoded: threads wait for room, and then fetch.
    """

    def __init__(self, loader: ImageLoader, fetcher: Fetcher, max_bytes: int) -> None:
        self._loader = loader
        self._fetcher = fetcher
        # One is fetched to know what size to expect.
        self._budget = SizeBudget(max_bytes, max_bytes)

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        if ref.url is None:
            return self._loader.submit(ref)
        reserved = self._budget.reserve(1)
        try:
            data = self._fetcher.fetch(ref.url)
        except RowError as error:
            self._budget.release(reserved)
            future: Future[ImageInput] = Future()
            future.set_exception(error)
            return future
        except BaseException:
            self._budget.release(reserved)
            raise
        size = len(data)
        self._budget.settle(reserved, [size])
        loaded = self._loader.submit(replace(ref, path=ref.url, data=data, url=None))
        loaded.add_done_callback(lambda _: self._budget.release(size))
        return loaded

    def wait_ready(self) -> None:
        self._loader.wait_ready()

    def close(self) -> None:
        self._budget.close()
        self._loader.close()
