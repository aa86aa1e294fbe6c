"""Images on their way through a device: files are read while others are decoded and resized.

A device that others use as well makes them and us wait each time that it is given something to do:
so a batch is decoded as a whole and resized as a whole, and nothing else is computed there.
"""

from __future__ import annotations

import math
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
# Later ones have what fits: for the first of that size the engine would wait.
_FIRST_BATCH = 4
_READ_AHEAD = 12  # files, beside those of a batch
_READERS = 2  # threads
_FINISHERS = 3

Reply = dict[str, Any]
SlotReply = tuple[int, Reply | None]  # None: the image is left to others


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
    ``tell`` is called by any thread, with what to reply of images as soon as that is known; and
    with nothing before each wait for a step of an image's.
    """

    def __init__(
        self,
        settings: DeviceSettings,
        decoder: DeviceDecoder,
        shared: Shared,
        tell: Callable[[Sequence[SlotReply]], None],
    ) -> None:
        self._limits = settings.limits
        self._processor = settings.processor
        self._decoder = decoder
        self._shared = shared
        self._tell = tell
        self._most: float = _FIRST_BATCH  # images of a batch
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._finishers = ThreadPoolExecutor(_FINISHERS, thread_name_prefix="finish")

    def prepare(self, refs: Sequence[ImageRef]) -> None:
        """Have a reply told of each image.

        Raises:
            RuntimeError: the device can no longer be used.
        """
        finishing: list[Future[None]] = []
        for batch in self._batches(self._read(refs)):
            self._tell([])
            images = self._decoder.decode([job.file for job in batch])
            self._wait_for(finishing)
            finishing = self._resize(batch, images)
            del images  # their memory is for the next ones
        self._wait_for(finishing)

    def _wait_for(self, finishing: list[Future[None]]) -> None:
        for future in finishing:
            self._tell([])
            future.result()
        finishing.clear()  # here, so that nobody gives memory back while something is decoded

    def _read(self, refs: Sequence[ImageRef]) -> Iterator[_Job]:
        """The plain JPEGs among the images, in their order."""
        ahead: deque[tuple[int, Future[_Job | None]]] = deque()
        for slot, ref in enumerate(refs):
            ahead.append((slot, self._readers.submit(self._opened, slot, ref)))
            if len(ahead) > _READ_AHEAD:
                yield from self._first_of(ahead)
        while ahead:
            yield from self._first_of(ahead)

    def _first_of(self, ahead: deque[tuple[int, Future[_Job | None]]]) -> Iterator[_Job]:
        self._tell([])
        slot, future = ahead.popleft()
        job = future.result()
        if job is None:
            self._tell([(slot, None)])
        else:
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
        if file is None or not self._takes(file.height * file.width):
            return None
        return _Job(slot, ref, identity, file)

    def _takes(self, pixels: int) -> bool:
        return self._decoder.min_pixels <= pixels <= self._decoder.max_pixels

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
            if len(batch) >= self._most:
                self._most = math.inf
                yield batch
                batch, pixels, num_bytes = [], 0, 0
        if batch:
            yield batch

    def _resize(
        self, batch: Sequence[_Job], images: Sequence[RgbImage | None]
    ) -> list[Future[None]]:
        """Have images made together and finished; none if the device has no memory for them all."""
        try:
            tried = map(self._resized, batch, images)
            resized = [each for each in tried if each is not None]
            self._decoder.make([image for each in resized for image in each.resized.images])
        except MemoryError:
            resized = []
        left = {job.slot for job in batch} - {each.job.slot for each in resized}
        self._tell([(slot, None) for slot in left])
        return [self._finishers.submit(self._finish, each) for each in resized]

    def _resized(self, job: _Job, image: RgbImage | None) -> _Resized | None:
        """None: the device refused it, or the model takes none like it."""
        if image is None:
            return None
        try:
            processor = self._processor.at(job.ref.resolution, job.ref.row_images)
            return _Resized(job, processor, processor.resize(image))
        except RowError:  # a worker will say it
            return None

    def _finish(self, each: _Resized) -> None:
        """Copy an image from the device into its slot, and tell of it."""
        prepared = each.processor.finish(each.resized)
        start = each.job.slot * self._processor.largest_grid.num_bytes
        self._shared[start : start + prepared.pixels.size] = prepared.pixels.reshape(-1)
        self._tell([(each.job.slot, reply_of(prepared, each.job.identity))])
