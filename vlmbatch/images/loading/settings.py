"""What processes that decode are sent first, pickled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vlmbatch.config import ImageDecoder, ImageLimits
from vlmbatch.images.jpeg import PlainJpeg
from vlmbatch.models.device_image import RgbImage
from vlmbatch.models.processor import ImageProcessor


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """``timeout_s``: seconds that an image may take."""

    limits: ImageLimits
    processor: ImageProcessor
    decoder: ImageDecoder
    timeout_s: float


class DeviceDecoder(Protocol):
    """Decodes batches of at most ``max_pixels``; all its images are upright.

    An image of fewer than ``min_pixels`` costs the device more than it spares a worker. What images
    are resized to may not be made before ``make``, or an array of it, is asked for.
    """

    @property
    def min_pixels(self) -> int: ...

    @property
    def max_pixels(self) -> int: ...

    def decode(self, files: Sequence[PlainJpeg]) -> Sequence[RgbImage | None]:
        """None: an image that it refuses."""
        ...

    def make(self, images: Sequence[RgbImage]) -> None:
        """Make resized images together, without waiting for them.

        Raises:
            MemoryError: the device has too little memory left for all of them.
        """
        ...


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """``open_decoder`` is pickled by its name. ``timeout_s``: seconds that a step may take."""

    limits: ImageLimits
    processor: ImageProcessor
    open_decoder: Callable[[], DeviceDecoder]
    timeout_s: float
