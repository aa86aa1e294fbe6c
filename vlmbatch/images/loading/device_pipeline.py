"""Images on their way through a device: files are read, decoded and resized beside one another.

A device that others use as well makes each step wait, and reading a file keeps no device busy: an
image after the other would take the sum of all three.
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
from vlmbatch.types import ImageRef

_MAX_FILE_BYTES = 2**26
_MAX_BATCH_BYTES = 2**28
_READ_AHEAD = 8  # files, beside those of a batch
_READERS = 2  # threads
_RESIZERS = 3

Reply = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Job:
    """``slot``: of its pixels in shared memory."""

    slot: int
    ref: ImageRef
    identity: FileIdentity | None
    file: PlainJpeg


class DevicePipeline:
    """Prepares plain JPEGs on the device, and puts their pixels into ``shared``, a slot an image.

    Two batches are on the device at a time: one is resized while the next is decoded. ``go_on`` is
    called, on the thread that calls ``prepare``, before each wait for a step of an image's.
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
        self._resizers = ThreadPoolExecutor(_RESIZERS, thread_name_prefix="resize")

    def prepare(self, refs: Sequence[ImageRef]) -> list[Reply | None]:
        """What to reply of each image; None: it is left to others.

        Raises:
            RuntimeError: the device can no longer be used.
        """
        replies: list[Reply | None] = [None] * len(refs)
        resized: list[tuple[int, Future[Reply | None]]] = []
        for batch in self._batches(self._read(refs)):
            images = self._decoder.decode([job.file for job in batch])
            self._collect(resized, replies)
            resized = [
                (job.slot, self._resizers.submit(self._resized, job, image))
                for job, image in zip(batch, images, strict=True)
                if image is not None
            ]
        self._collect(resized, replies)
        return replies

    def _collect(
        self, resized: Iterable[tuple[int, Future[Reply | None]]], replies: list[Reply | None]
    ) -> None:
        for slot, future in resized:
            self._go_on()
            replies[slot] = future.result()
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

    def _resized(self, job: _Job, image: RgbImage) -> Reply | None:
        """Put an image into its slot; None: the model takes none like it, or memory is short."""
        try:
            processor = self._processor.at(job.ref.resolution, job.ref.row_images)
            prepared = processor.process(image)
        except (RowError, MemoryError):
            return None
        start = job.slot * self._processor.largest_grid.num_bytes
        self._shared[start : start + prepared.pixels.size] = prepared.pixels.reshape(-1)
        return reply_of(prepared, job.identity)
