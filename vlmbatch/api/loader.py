"""Images that are in memory already, beside those that others load from files."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from vlmbatch.api.images import HeldFeatures, HeldImage
from vlmbatch.errors import RowError
from vlmbatch.images.loading.loader import ImageLoader
from vlmbatch.models.processor import Processor
from vlmbatch.types import ImageInput, ImageRef


class HeldImageLoader:
    """Takes held images on the thread that asks; an ``ImageLoader``.

    All others go to the loader that ``open_files`` opens when the first one comes.
    """

    def __init__(self, processor: Processor, open_files: Callable[[], ImageLoader]) -> None:
        self._images = processor.images
        self._open_files = open_files
        self._files: ImageLoader | None = None
        self._lock = threading.Lock()

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        future: Future[ImageInput] = Future()
        try:
            if isinstance(ref, HeldImage):
                assert self._images is not None, "images come as features"
                images = self._images.at(ref.resolution, ref.row_images)
                future.set_result(images.process(ref.image))
            elif isinstance(ref, HeldFeatures):
                future.set_result(ref.features)
            else:
                return self._file_loader().submit(ref)
        except RowError as error:
            future.set_exception(error)
        return future

    def wait_ready(self) -> None:
        if self._files is not None:
            self._files.wait_ready()

    def close(self) -> None:
        if self._files is not None:
            self._files.close()

    def _file_loader(self) -> ImageLoader:
        with self._lock:
            if self._files is None:
                self._files = self._open_files()
            return self._files
