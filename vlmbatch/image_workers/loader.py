"""Where pixels come from: worker processes, or this one."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from vlmbatch.config import ImageLimits
from vlmbatch.data.images import decode_image
from vlmbatch.errors import RowError
from vlmbatch.models.image_processor import ImageProcessor
from vlmbatch.types import ImageRef, PixelImage


class ImageLoader(Protocol):
    """Decodes and resizes images. Thread-safe; results do not depend on the implementation."""

    def submit(self, ref: ImageRef) -> Future[PixelImage]:
        """Begin with an image; may wait for room. The future raises RowError for a bad image."""
        ...

    def close(self) -> None:
        """Give up what is under way: its futures raise CancelledError."""
        ...


class InProcessLoader:
    """Decodes on the thread that asks. A decoder that crashes or hangs takes the run with it."""

    def __init__(self, limits: ImageLimits, processor: ImageProcessor) -> None:
        self._limits = limits
        self._processor = processor

    def submit(self, ref: ImageRef) -> Future[PixelImage]:
        future: Future[PixelImage] = Future()
        try:
            future.set_result(self._processor.process(decode_image(ref, self._limits)))
        except RowError as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass
