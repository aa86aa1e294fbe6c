"""Where pixels come from: worker processes, or this one."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from vlmbatch.config import ImageLimits
from vlmbatch.data.images import decode_image
from vlmbatch.errors import RowError
from vlmbatch.models.image_processor import ImageProcessor
from vlmbatch.types import ImageRef, PixelImage

# Each takes some 40 MB. More are given by hand where images are large and the model small.
_MAX_DEFAULT_WORKERS = 32


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


def default_num_workers() -> int:
    """One for each core that this process may use, less the one that drives the engine."""
    return min(max(1, _available_cores() - 1), _MAX_DEFAULT_WORKERS)


def _available_cores() -> int:
    """As affinity and the container's quota (cgroup 2) allow."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except OSError:
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
