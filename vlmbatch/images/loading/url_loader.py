"""Images behind URLs, for a loader that knows files and bytes only."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

from vlmbatch.errors import RowError
from vlmbatch.images.loading.loader import ImageLoader
from vlmbatch.types import ImageInput, ImageRef


class Fetcher(Protocol):
    """Thread-safe."""

    def fetch(self, url: str) -> bytes:
        """The image's file; waits for it. Raises RowError."""
        ...


class UrlLoader:
    """Fetches on the thread that asks, and hands the bytes to ``loader``; an ``ImageLoader``."""

    def __init__(self, loader: ImageLoader, fetcher: Fetcher) -> None:
        self._loader = loader
        self._fetcher = fetcher

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        if ref.url is None:
            return self._loader.submit(ref)
        try:
            data = self._fetcher.fetch(ref.url)
        except RowError as error:
            future: Future[ImageInput] = Future()
            future.set_exception(error)
            return future
        return self._loader.submit(replace(ref, path=ref.url, data=data, url=None))

    def close(self) -> None:
        self._loader.close()
