"""JPEGs decoded by nvJPEG, which torchvision brings; a ``DeviceDecoder``."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from vlmbatch.images.jpeg import PlainJpeg
from vlmbatch.nvjpeg.tensor_image import TensorImage
from vlmbatch.nvjpeg.torchvision_jpeg import open_jpeg_decoder

# Of the device's memory, for images and what they are resized with; nvJPEG and CUDA have their own.
_BYTES = 2**30
# What decoding leaves where it writes nothing: such pixels are worth no more than none.
_UNWRITTEN = 1


class NvJpegDecoder:
    """Decodes on the CUDA device of this name; on others torchvision decodes with libjpeg.

    Raises:
        ImportError: torchvision is missing.
        RuntimeError: it lacks nvJPEG, or the device is not to be had.
    """

    # Of a batch; three bytes each, as many where images are turned, and what nvJPEG takes.
    max_pixels = 2**26

    def __init__(self, device: str) -> None:
        self._decode_jpegs = open_jpeg_decoder()
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self._device = torch.device("cuda", self._device.index or 0)
            torch.cuda.set_device(self._device)
            total = torch.cuda.get_device_properties(self._device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, _BYTES / total), self._device)
        file = io.BytesIO()
        Image.new("RGB", (256, 256)).save(file, "JPEG")
        (image,) = self._decoded([PlainJpeg(file.getvalue(), 256, 256, None)])  # loads kernels
        TensorImage(image).resize((48, 32), Image.Resampling.BICUBIC)

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
            for pixels, written, file in zip(decoded, _are_written(decoded), files, strict=True)
        ]

    def _decoded(self, files: Sequence[PlainJpeg]) -> list[Tensor]:
        """(3, height, width) uint8 each."""
        encoded = [torch.frombuffer(bytearray(file.data), dtype=torch.uint8) for file in files]
        # An engine for JPEGs may pass over a file without an error. Its output is put where these
        # were: torch keeps freed memory, and gives it out again by its size.
        blank = [
            torch.full(
                (3, file.height, file.width), _UNWRITTEN, dtype=torch.uint8, device=self._device
            )
            for file in files
        ]
        del blank
        # nvJPEG writes on a stream that does not wait for what others do with that memory.
        self._synchronize()
        decoded = self._decode_jpegs(encoded, self._device)
        self._synchronize()
        return decoded

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _are_written(images: Sequence[Tensor]) -> list[bool]:
    """Whether the middle line of each is, in few operations: a GPU is lent between others'."""
    lines = [pixels[0, pixels.shape[1] // 2] for pixels in images]
    values = torch.split(torch.cat(lines).cpu(), [len(line) for line in lines])
    return [bool((line != _UNWRITTEN).any()) for line in values]
