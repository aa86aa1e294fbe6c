"""Fetching images from object stores, within the limits of a fetched image."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.images.buckets import bucket_of
from vlmbatch.images.fetch import FetchLimits
from vlmbatch.images.fetch_budget import LargerError, Room
from vlmbatch.images.urls import shown
from vlmbatch.remote.errors import RemoteError, RemoteMissingError
from vlmbatch.remote.filesystem import RemotePath, open_filesystem
from vlmbatch.remote.objects import object_info

if TYPE_CHECKING:
    from fsspec.asyn import AsyncFileSystem

STORE_LIMITS = FetchLimits(timeout_s=60.0)  # with the attempts that the store's library makes
_STEP = 4  # times as much is asked for of an object that is larger than expected


class StoreFetcher:
    """Fetches objects whole, of buckets that are allowed already. Thread-safe.

    Each bucket is opened once, with the credentials of this process. Where a store's library can be
    told to give up, it does after ``timeout_s``; elsewhere its own time limits hold.
    """

    def __init__(self, limits: FetchLimits = STORE_LIMITS) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._buckets: dict[str, RemotePath] = {}

    def fetch(self, url: str, room: Room | None = None) -> bytes:
        """The content at ``url``; waits for it. ``room``: that it may take; None: as much as any.

        Raises:
            RowError: IMAGE_MISSING, IMAGE_FETCH_FAILED, IMAGE_TOO_LARGE or IMAGE_UNREADABLE.
            LargerError: there is no room for all of it. How much it has, no response says.
        """
        most = self._limits.max_bytes
        taken = most if room is None else min(room.num_bytes, most)
        with _row_errors():
            data = self._content(self._place(url), taken + 1)
        if taken < len(data) <= most:
            raise LargerError(min(_STEP * taken, most))
        return self._checked(url, data, len(data))

    def fetch_start(self, url: str, num_bytes: int) -> bytes:
        """The first bytes at ``url``, or all of less; errors as of ``fetch``."""
        with _row_errors():
            place = self._place(url)
            data = self._content(place, num_bytes)
            size = len(data) if len(data) < num_bytes else self._size(place)
        return self._checked(url, data, size)

    def _checked(self, url: str, data: bytes, size: int | None) -> bytes:
        if size is not None and size > self._limits.max_bytes:
            raise RowError(
                ErrorCode.IMAGE_TOO_LARGE,
                f"{shown(url)}: over the limit of {self._limits.max_bytes} bytes for a fetched "
                "image",
            )
        if not data:
            raise RowError(ErrorCode.IMAGE_UNREADABLE, f"{shown(url)}: empty (0 bytes)")
        return data

    def _place(self, url: str) -> RemotePath:
        bucket = self._bucket(url)
        return bucket.at(bucket.filesystem._strip_protocol(url))

    def _bucket(self, url: str) -> RemotePath:
        name = bucket_of(url)
        with self._lock:
            if name not in self._buckets:
                self._buckets[name] = open_filesystem(f"{name}/")
            return self._buckets[name]

    def _content(self, place: RemotePath, end: int) -> bytes:
        """The bytes before ``end``."""
        filesystem = place.filesystem
        try:
            with place.errors():
                if not filesystem.async_impl:
                    return cast(bytes, filesystem.cat_file(place.path, start=0, end=end))
                store = cast("AsyncFileSystem", filesystem)
                read = partial(store._cat_file, place.path, start=0, end=end)
                return cast(bytes, self._within_time(store, read))
        except RemoteError as error:
            # A range of an empty object is none, and refused.
            if type(error) is RemoteError and self._size(place) == 0:
                return b""
            raise

    def _size(self, place: RemotePath) -> int | None:
        """What ``object_info`` says."""
        filesystem = place.filesystem
        if not filesystem.async_impl:
            return object_info(place).get("size")
        with place.errors():
            filesystem.invalidate_cache(place.path)
            store = cast("AsyncFileSystem", filesystem)
            info = self._within_time(store, partial(store._info, place.path))
            return cast("int | None", info.get("size"))

    def _within_time(
        self, filesystem: AsyncFileSystem, ask: Callable[[], Coroutine[Any, Any, Any]]
    ) -> Any:
        seconds = self._limits.timeout_s
        answer = asyncio.run_coroutine_threadsafe(ask(), filesystem.loop)
        try:
            return answer.result(seconds)
        except TimeoutError as error:
            answer.cancel()
            raise TimeoutError(f"took longer than {seconds:g} seconds") from error


@contextmanager
def _row_errors() -> Iterator[None]:
    try:
        yield
    except RemoteMissingError as error:
        raise RowError(ErrorCode.IMAGE_MISSING, str(error)) from error
    except (RemoteError, ConfigError) as error:
        raise RowError(ErrorCode.IMAGE_FETCH_FAILED, str(error)) from error
