"""Images behind URLs, for a loader that knows files and bytes only."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

from vlmbatch.errors import RowError
from vlmbatch.images.fetch import ImageFetcher
from vlmbatch.images.loading.loader import ImageLoader
from vlmbatch.types import ImageInput, ImageRef


class UrlLoader:
    """Fetches on the thread that asks, and hands the bytes to ``loader``; an ``ImageLoader``."""

    def __init__(self, loader: ImageLoader, fetcher: ImageFetcher) -> None:
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
