"""Fetching images by URL, of web hosts and of object stores."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from vlmbatch.images.cancellable import CancellableCalls
from vlmbatch.images.urls import AllowedDomains
from vlmbatch.remote.filesystem import scheme_of

if TYPE_CHECKING:
    from vlmbatch.images.fetch import ImageFetcher
    from vlmbatch.images.fetch_budget import Room
    from vlmbatch.images.store_fetch import StoreFetcher


class UrlFetcher:
    """Leaves each URL to what fetches its kind, set up when the first image needs it. Thread-safe.

    An image has at most ``max_bytes``, and no more than a fetched one may have. Which buckets may
    be read was decided where the URL was; ``domains`` are asked again, for redirects.
    """

    def __init__(self, domains: AllowedDomains, max_bytes: int) -> None:
        self._domains = domains
        self._max_bytes = max_bytes
        self._calls = CancellableCalls()
        self._lock = threading.Lock()  # for what is set up

    def fetch(self, url: str, room: Room | None = None) -> bytes:
        """The image's file; waits for it. ``room``: that it may take; None: as much as any.

        Raises:
            RowError: as of ``ImageFetcher`` and ``StoreFetcher``.
            LargerError: there is no room for all of it.
            CancelledError: it is closed.
        """
        return self._calls.run(lambda: self._fetcher(url).fetch(url, room))

    def fetch_start(self, url: str, num_bytes: int) -> bytes:
        """The first bytes of the image's file, or all of a smaller one; errors as of ``fetch``."""
        return self._calls.run(lambda: self._fetcher(url).fetch_start(url, num_bytes))

    def close(self) -> None:
        """Nobody waits any more for what may take long: a CancelledError for who does."""
        self._calls.cancel()

    def _fetcher(self, url: str) -> ImageFetcher | StoreFetcher:
        with self._lock:
            return self._web if scheme_of(url) is None else self._stores

    @cached_property
    def _web(self) -> ImageFetcher:
        from vlmbatch.images.fetch import FetchLimits, ImageFetcher

        limits = FetchLimits()
        max_bytes = min(limits.max_bytes, self._max_bytes)
        return ImageFetcher(self._domains, replace(limits, max_bytes=max_bytes))

    @cached_property
    def _stores(self) -> StoreFetcher:
        from vlmbatch.images.store_fetch import STORE_LIMITS, StoreFetcher

        max_bytes = min(STORE_LIMITS.max_bytes, self._max_bytes)
        return StoreFetcher(replace(STORE_LIMITS, max_bytes=max_bytes))
