"""Where images come from: worker processes that decode, or this one; or files of features."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol
from weakref import WeakValueDictionary

from vlmbatch.config import ImageDecoder, ImageLimits
from vlmbatch.durable.content_digest import content_digest
from vlmbatch.errors import RowError
from vlmbatch.images.feature_file import read_features
from vlmbatch.images.loading.prepare import prepare_image
from vlmbatch.images.loading.protocol import FileIdentity, file_identity
from vlmbatch.models.processor import ImageProcessor, Processor
from vlmbatch.types import FeatureImage, ImageInput, ImageRef


class ImageLoader(Protocol):
    """Loads images as the engine takes them. Thread-safe; results depend on the files alone."""

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        """Begin with an image; may wait for room. The future raises RowError for a bad image."""
        ...

    def wait_ready(self) -> None:
        """Wait until the processes that decode are up, or none will be any more."""
        ...

    def close(self) -> None:
        """Give up what is under way: its futures raise CancelledError. May be called again."""
        ...


class InProcessLoader:
    """Decodes on the thread that asks. A decoder that crashes or hangs takes the run with it."""

    def __init__(
        self, limits: ImageLimits, processor: ImageProcessor, decoder: ImageDecoder = "exact"
    ) -> None:
        self._limits = limits
        self._processor = processor
        self._decoder: ImageDecoder = decoder

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        future: Future[ImageInput] = Future()
        try:
            image = prepare_image(ref, self._limits, self._processor, self._decoder)
            future.set_result(image)
        except RowError as error:
            future.set_exception(error)
        return future

    def wait_ready(self) -> None:
        pass

    def close(self) -> None:
        pass


class FeatureLoader:
    """Reads features on the thread that asks; rows of one file, or the same bytes, share one array.

    A row's resolution was that of its features when they were computed.
    """

    def __init__(self, limits: ImageLimits, processor: Processor) -> None:
        self._limits = limits
        self._grid_of = processor.feature_grid
        self._in_use: WeakValueDictionary[tuple[str, FileIdentity | bytes], FeatureImage] = (
            WeakValueDictionary()
        )

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        future: Future[ImageInput] = Future()
        try:
            future.set_result(self._read(ref))
        except RowError as error:
            future.set_exception(error)
        return future

    def _read(self, ref: ImageRef) -> FeatureImage:
        # Before the file is opened: if it is replaced in between, it is read anew next time.
        identity = file_identity(ref.path or "") if ref.data is None else content_digest(ref.data)
        if identity is None:
            return read_features(ref, self._limits, self._grid_of)
        key = (ref.path or "", identity)
        features = self._in_use.get(key)
        if features is None:
            features = self._in_use[key] = read_features(ref, self._limits, self._grid_of)
        return features

    def wait_ready(self) -> None:
        pass

    def close(self) -> None:
        pass
