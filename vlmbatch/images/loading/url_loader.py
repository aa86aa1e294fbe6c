"""Images behind URLs, for a loader that knows files and bytes only."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from functools import partial

from vlmbatch.images.loading.loader import ImageLoader
from vlmbatch.images.loading.shared_fetches import Fetch, SharedFetches
from vlmbatch.types import ImageInput, ImageRef


class UrlLoader:
    """Has files fetched on the threads that ask, and hands them to ``loader``; an ``ImageLoader``.

    A file is in use until it is decoded. Who asks for one that is under way does not wait: its
    image is handed on by the thread that fetches.
    """

    def __init__(self, loader: ImageLoader, fetches: SharedFetches) -> None:
        self._loader = loader
        self._fetches = fetches

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        if ref.url is None:
            return self._loader.submit(ref)
        image: Future[ImageInput] = Future()
        fetch = self._fetches.begin(ref.url)
        fetch.data.add_done_callback(partial(self._load, ref, fetch, image))
        return image

    def wait_ready(self) -> None:
        self._loader.wait_ready()

    def close(self) -> None:
        self._fetches.close()
        self._loader.close()

    def _load(
        self, ref: ImageRef, fetch: Fetch, image: Future[ImageInput], fetched: Future[bytes]
    ) -> None:
        try:
            data = fetched.result()
            loaded = self._loader.submit(replace(ref, path=ref.url, data=data, url=None))
        except BaseException as error:  # noqa: BLE001  raised again to whoever waits
            self._fetches.end(fetch)
            image.set_exception(error)
            return
        loaded.add_done_callback(partial(self._hand_on, fetch, image))

    def _hand_on(self, fetch: Fetch, image: Future[ImageInput], loaded: Future[ImageInput]) -> None:
        self._fetches.end(fetch)
        # Not raised here: the frame that it would keep has the bytes.
        if (error := loaded.exception()) is not None:
            image.set_exception(error)
        else:
            image.set_result(loaded.result())
