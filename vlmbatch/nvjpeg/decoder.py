"""JPEGs decoded by nvJPEG, which torchvision brings; a ``DeviceDecoder``."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmbatch.images.jpeg import PlainJpeg
from vlmbatch.models.device_image import RgbImage
from vlmbatch.nvjpeg.resizing import make
from vlmbatch.nvjpeg.tensor_image import TensorImage
from vlmbatch.nvjpeg.torchvision_jpeg import open_jpeg_decoder

# Of the device's memory, for images and what they are resized with; nvJPEG and CUDA have their own.
_BYTES = 2**30
# What decoding leaves where it writes nothing: such pixels are worth no more than none.
_UNWRITTEN = 1
_MAX_WIDTH = 2**16  # of a JPEG
# A smaller image takes a core a few milliseconds, and would interrupt the engine all the same.
_MIN_PIXELS = 2**20


class NvJpegDecoder:
    """Decodes on the CUDA device of this name; on others torchvision decodes with libjpeg.

    Raises:
        ImportError: torchvision is missing.
        RuntimeError: it lacks nvJPEG, or the device is not to be had.
    """

    # Of a batch; three bytes each, and what nvJPEG takes.
    max_pixels = 2**27

    def __init__(self, device: str, min_pixels: int = _MIN_PIXELS) -> None:
        self.min_pixels = min_pixels
        self._decode_jpegs = open_jpeg_decoder()
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self._device = torch.device("cuda", self._device.index or 0)
            torch.cuda.set_device(self._device)
            total = torch.cuda.get_device_properties(self._device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, _BYTES / total), self._device)
        self._unwritten = self._on_host(_MAX_WIDTH).fill_(_UNWRITTEN)
        file = io.BytesIO()
        Image.new("RGB", (256, 256)).save(file, "JPEG")
        (image,) = self._decoded([PlainJpeg(file.getvalue(), 256, 256, None)])
        np.asarray(TensorImage(image).resize((48, 32), Image.Resampling.BICUBIC))  # loads kernels

    def decode(self, files: Sequence[PlainJpeg]) -> list[TensorImage | None]:
        """Upright images, on the device; None for what nvJPEG refuses.

        Raises:
            RuntimeError: the device can no longer be used.
        """
        try:
            decoded = self._decoded(files)
        except RuntimeError:
            self._synchronize()
            if len(files) == 1:
                return [None]
            return [image for file in files for image in self.decode([file])]
        return [
            TensorImage(pixels).upright(file.orientation)
            if written and pixels.shape[1:] == (file.height, file.width)
            else None
            for pixels, written, file in zip(
                decoded, self._are_written(decoded), files, strict=True
            )
        ]

    def make(self, images: Sequence[RgbImage]) -> None:
        """See ``DeviceDecoder``."""
        make(image.pixels for image in images if isinstance(image, TensorImage))

    def _decoded(self, files: Sequence[PlainJpeg]) -> list[Tensor]:
        """(3, height, width) uint8 each."""
        encoded = [torch.frombuffer(bytearray(file.data), dtype=torch.uint8) for file in files]
        self._mark_memory(files)
        # nvJPEG writes on a stream that does not wait for what others do with that memory.
        self._synchronize()
        decoded = self._decode_jpegs(encoded, self._device)
        self._synchronize()
        return decoded

    def _mark_memory(self, files: Sequence[PlainJpeg]) -> None:
        """Have a line of each image's memory say that nothing is written there.

        An engine for JPEGs may pass over a file without an error. torchvision asks for the images'
        memory in this order, and torch gives out what was freed as it did before.
        """
        images = [
            torch.empty((3, file.height, file.width), dtype=torch.uint8, device=self._device)
            for file in files
        ]
        for line in map(_middle_line, images):
            line.copy_(self._unwritten[: len(line)], non_blocking=True)

    def _are_written(self, images: Sequence[Tensor]) -> list[bool]:
        """Whether the middle line of each is."""
        lines = [_middle_line(pixels) for pixels in images]
        lengths = [len(line) for line in lines]
        values = torch.split(self._on_host(sum(lengths)), lengths)
        for value, line in zip(values, lines, strict=True):
            value.copy_(line, non_blocking=True)
        self._synchronize()
        return [bool((value != _UNWRITTEN).any()) for value in values]

    def _on_host(self, num_bytes: int) -> Tensor:
        """Memory that copies from and to the device need not wait for: no kernel, no staging."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda")

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _middle_line(pixels: Tensor) -> Tensor:
    """Of the first channel: all of it beside each other in memory, so that a copy is no kernel."""
    return pixels[0, pixels.shape[1] // 2]
