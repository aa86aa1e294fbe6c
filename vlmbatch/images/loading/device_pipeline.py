"""Images on their way through a device: files are read while others are decoded and resized.

A device that others use as well makes them and us wait each time that it is given something to do:
so a batch is decoded as a whole and resized as a whole, and nothing else is computed there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from vlmbatch.errors import RowError
from vlmbatch.images.jpeg import PlainJpeg, read_plain_jpeg
from vlmbatch.images.loading.protocol import FileIdentity, file_identity, reply_of
from vlmbatch.images.loading.serving import Shared
from vlmbatch.images.loading.settings import DeviceDecoder, DeviceSettings
from vlmbatch.models.device_image import RgbImage
from vlmbatch.models.processor import ImageProcessor, Resized
from vlmbatch.types import ImageRef

_MAX_FILE_BYTES = 2**26
_MAX_BATCH_BYTES = 2**28
_READ_AHEAD = 8  # files, beside those of a batch
_READERS = 2  # threads
_FINISHERS = 3

Reply = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Job:
    """``slot``: of its pixels in shared memory."""

    slot: int
    ref: ImageRef
    identity: FileIdentity | None
    file: PlainJpeg


@dataclass(frozen=True, slots=True)
class _Resized:
    job: _Job
    processor: ImageProcessor
    resized: Resized


class DevicePipeline:
    """Prepares plain JPEGs on the device, and puts their pixels into ``shared``, a slot an image.

    Two batches are on the device at a time: one is copied from there while the next is decoded.
    ``go_on`` is called, on the thread that calls ``prepare``, before each wait for a step of an
    image's.
    """

    def __init__(
        self,
        settings: DeviceSettings,
        decoder: DeviceDecoder,
        shared: Shared,
        go_on: Callable[[], None],
    ) -> None:
        self._limits = settings.limits
        self._processor = settings.processor
        self._decoder = decoder
        self._shared = shared
        self._go_on = go_on
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._finishers = ThreadPoolExecutor(_FINISHERS, thread_name_prefix="finish")

    def prepare(self, refs: Sequence[ImageRef]) -> list[Reply | None]:
        """What to reply of each image; None: it is left to others.

        Raises:
            RuntimeError: the device can no longer be used.
        """
        replies: list[Reply | None] = [None] * len(refs)
        finishing: list[tuple[_Resized, Future[Reply]]] = []
        for batch in self._batches(self._read(refs)):
            images = self._decoder.decode([job.file for job in batch])
            self._collect(finishing, replies)
            finishing = self._resize(batch, images)
            del images  # their memory is for the next ones
        self._collect(finishing, replies)
        return replies

    def _collect(
        self, finishing: list[tuple[_Resized, Future[Reply]]], replies: list[Reply | None]
    ) -> None:
        for each, future in finishing:
            self._go_on()
            replies[each.job.slot] = future.result()
        finishing.clear()  # here, so that nobody gives memory back while something is decoded
        self._go_on()

    def _read(self, refs: Sequence[ImageRef]) -> Iterator[_Job]:
        """The plain JPEGs among the images, in their order."""
        ahead: deque[Future[_Job | None]] = deque()
        for slot, ref in enumerate(refs):
            ahead.append(self._readers.submit(self._opened, slot, ref))
            if len(ahead) > _READ_AHEAD:
                yield from self._first_of(ahead)
        while ahead:
            yield from self._first_of(ahead)

    def _first_of(self, ahead: deque[Future[_Job | None]]) -> Iterator[_Job]:
        self._go_on()
        job = ahead.popleft().result()
        if job is not None:
            yield job

    def _opened(self, slot: int, ref: ImageRef) -> _Job | None:
        if ref.page is not None:
            return None
        # Before the file is opened: if it is replaced in between, it is read anew next time.
        identity = None if ref.data is not None else file_identity(ref.path or "")
        try:
            file = read_plain_jpeg(ref, self._limits, _MAX_FILE_BYTES)
        except (RowError, OSError):  # a worker will say what is wrong
            return None
        if file is None or file.height * file.width > self._decoder.max_pixels:
            return None
        return _Job(slot, ref, identity, file)

    def _batches(self, jobs: Iterable[_Job]) -> Iterator[list[_Job]]:
        """As many together as the device and memory allow."""
        batch: list[_Job] = []
        pixels = num_bytes = 0
        for job in jobs:
            pixels += job.file.height * job.file.width
            num_bytes += len(job.file.data)
            if batch and (pixels > self._decoder.max_pixels or num_bytes > _MAX_BATCH_BYTES):
                yield batch
                batch = []
                pixels, num_bytes = job.file.height * job.file.width, len(job.file.data)
            batch.append(job)
        if batch:
            yield batch

    def _resize(
        self, batch: Sequence[_Job], images: Sequence[RgbImage | None]
    ) -> list[tuple[_Resized, Future[Reply]]]:
        """Have images made together and finished; none if the device has no memory for them all."""
        try:
            tried = map(self._resized, batch, images)
            resized = [each for each in tried if each is not None]
            self._decoder.make([image for each in resized for image in each.resized.images])
        except MemoryError:
            return []
        return [(each, self._finishers.submit(self._finished, each)) for each in resized]

    def _resized(self, job: _Job, image: RgbImage | None) -> _Resized | None:
        """None: the device refused it, or the model takes none like it."""
        if image is None:
            return None
        try:
            processor = self._processor.at(job.ref.resolution, job.ref.row_images)
            return _Resized(job, processor, processor.resize(image))
        except RowError:  # a worker will say it
            return None

    def _finished(self, each: _Resized) -> Reply:
        """Copy an image from the device into its slot."""
        prepared = each.processor.finish(each.resized)
        start = each.job.slot * self._processor.largest_grid.num_bytes
        self._shared[start : start + prepared.pixels.size] = prepared.pixels.reshape(-1)
        return reply_of(prepared, each.job.identity)
