"""The process that decodes on a device, a batch at a time; its arguments are a worker's.

It takes plain JPEGs alone. All else, and whatever is wrong with an image, it leaves to the workers,
whose errors are then the only ones. What it decodes with is in its settings, which import it. An
empty reply goes before each step of its work, and at the end one for all images.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vlmbatch.config import ImageLimits
from vlmbatch.errors import RowError
from vlmbatch.images.jpeg import PlainJpeg, read_plain_jpeg
from vlmbatch.images.loading.protocol import (
    FileIdentity,
    file_identity,
    receive,
    ref_of,
    reply_of,
    send,
)
from vlmbatch.images.loading.serving import (
    ORPHAN_SECONDS,
    Shared,
    forget_what_was_said,
    give_way,
    serve_parent,
)
from vlmbatch.images.loading.settings import DeviceSettings
from vlmbatch.models.device_image import RgbImage
from vlmbatch.models.family import ImageProcessor
from vlmbatch.types import ImageRef

_MAX_FILE_BYTES = 2**26
_MAX_BATCH_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class _Job:
    """``slot``: of its pixels in shared memory."""

    slot: int
    ref: ImageRef
    identity: FileIdentity | None
    file: PlainJpeg


def main() -> None:
    """Serve until the other end of the socket closes."""
    serve_parent(_serve)


def _serve(connection: socket.socket, shared: Shared) -> None:
    settings: DeviceSettings = pickle.loads(receive(connection)[1])
    give_way()
    decoder = settings.open_decoder()
    send(connection, {"ready": os.getpid()})

    def go_on() -> None:
        """So that a batch may take as long as its images do one by one."""
        signal.setitimer(signal.ITIMER_REAL, settings.timeout_s + ORPHAN_SECONDS)
        send(connection, {})

    while True:
        request, data = receive(connection)
        forget_what_was_said()
        replies: list[dict[str, Any] | None] = [None] * len(request["images"])
        refs = _refs(request["images"], data, go_on)
        for batch in _batches(refs, settings.limits, decoder.max_pixels):
            images = decoder.decode([job.file for job in batch])
            for job, image in zip(batch, images, strict=True):
                go_on()
                if image is not None:
                    replies[job.slot] = _prepared(job, image, settings.processor, shared)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(connection, {"images": replies})


def _refs(
    requests: list[dict[str, Any]], data: bytes, go_on: Callable[[], None]
) -> Iterator[ImageRef]:
    start = 0
    for request in requests:
        go_on()
        end = start + (request["num_bytes"] or 0)
        yield ref_of(request, data[start:end])
        start = end
    go_on()


def _batches(
    refs: Iterator[ImageRef], limits: ImageLimits, max_pixels: int
) -> Iterator[list[_Job]]:
    """The plain JPEGs among the images, together as far as memory allows."""
    batch: list[_Job] = []
    pixels = num_bytes = 0
    for slot, ref in enumerate(refs):
        if ref.page is not None:
            continue
        # Before the file is opened: if it is replaced in between, it is read anew next time.
        identity = None if ref.data is not None else file_identity(ref.path or "")
        try:
            file = read_plain_jpeg(ref, limits, _MAX_FILE_BYTES)
        except (RowError, OSError):  # a worker will say what is wrong
            continue
        if file is None or file.height * file.width > max_pixels:
            continue
        pixels += file.height * file.width
        num_bytes += len(file.data)
        if batch and (pixels > max_pixels or num_bytes > _MAX_BATCH_BYTES):
            yield batch
            batch, pixels, num_bytes = [], file.height * file.width, len(file.data)
        batch.append(_Job(slot, ref, identity, file))
    if batch:
        yield batch


def _prepared(
    job: _Job, image: RgbImage, processor: ImageProcessor, shared: Shared
) -> dict[str, Any] | None:
    """Put an image into its slot; None: the model takes none like it, or the device is short."""
    try:
        prepared = processor.at(job.ref.resolution, job.ref.row_images).process(image)
    except (RowError, MemoryError):
        return None
    start = job.slot * processor.largest_grid.num_bytes
    shared[start : start + prepared.pixels.size] = prepared.pixels.reshape(-1)
    return reply_of(prepared, job.identity)


if __name__ == "__main__":
    main()
