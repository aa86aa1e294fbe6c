"""Images that are in shared memory when they are loaded, whichever loader they come from."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from numpy.typing import NDArray

from vlmbatch.images.loading.loader import ImageLoader
from vlmbatch.images.shared_memory import SharedMemory
from vlmbatch.types import FeatureImage, ImageInput, ImageRef


class SharedLoader:
    """An ``ImageLoader`` that copies what ``loader`` gives into ``memory``.

    That is done on the threads that the images come on. Images of the same content share an array
    for as long as one of them is held.
    """

    def __init__(self, loader: ImageLoader, memory: SharedMemory) -> None:
        self._loader = loader
        self._memory = memory
        self._lock = threading.Lock()
        self._arrays: WeakValueDictionary[bytes, NDArray[Any]] = WeakValueDictionary()

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        shared: Future[ImageInput] = Future()
        self._loader.submit(ref).add_done_callback(self._pass_on(shared))
        return shared

    def wait_ready(self) -> None:
        self._loader.wait_ready()

    def close(self) -> None:
        self._loader.close()

    def _pass_on(self, shared: Future[ImageInput]) -> Callable[[Future[ImageInput]], None]:
        def pass_on(loaded: Future[ImageInput]) -> None:
            try:
                shared.set_result(self._share(loaded.result()))
            except BaseException as error:  # noqa: BLE001  raised again to whoever waits
                shared.set_exception(error)

        return pass_on

    def _share(self, image: ImageInput) -> ImageInput:
        with self._lock:
            array = self._arrays.get(image.content_hash)
        if array is None:
            values = image.features if isinstance(image, FeatureImage) else image.pixels
            array = self._memory.copy(values)
            array.flags.writeable = False  # rows share it
            with self._lock:
                array = self._arrays.setdefault(image.content_hash, array)
        if isinstance(image, FeatureImage):
            return replace(image, features=array)
        return replace(image, pixels=array)
