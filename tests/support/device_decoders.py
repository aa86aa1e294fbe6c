"""Decoders in the place of a GPU's, for the process that decodes on one. They import no torch.

What becomes of a file says its comment.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from vlmbatch.config import ImageLimits
from vlmbatch.images.decode import decode_image
from vlmbatch.images.jpeg import PlainJpeg
from vlmbatch.images.loading.protocol import send
from vlmbatch.models.device_image import RgbImage
from vlmbatch.types import ImageRef


class LargeImage(Image.Image):
    """More than the device has memory for."""

    def __init__(self) -> None:
        super().__init__()
        self._mode = "RGB"
        self._size = (400, 300)

    def resize(self, *_: Any, **__: Any) -> Image.Image:
        return self


class PillowDecoder:
    """``log``: gets a line of how many files it was given, for each batch."""

    def __init__(self, log: Path, max_pixels: int = 10**6, min_pixels: int = 0) -> None:
        self._log = log
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels

    def decode(self, files: Sequence[PlainJpeg]) -> list[RgbImage | None]:
        with self._log.open("a") as log:
            log.write(f"{len(files)}\n")
        return [self._decoded(file) for file in files]

    def make(self, images: Sequence[RgbImage]) -> None:
        if any(isinstance(image, LargeImage) for image in images):
            raise MemoryError

    def _decoded(self, file: PlainJpeg) -> RgbImage | None:
        if b"crash, please" in file.data:
            os.kill(os.getpid(), signal.SIGSEGV)
        if b"hang, please" in file.data:
            while True:
                time.sleep(60)
        if b"slowly, please" in file.data:
            time.sleep(0.5)
        if b"refuse, please" in file.data:
            return None
        if b"large, please" in file.data:
            return LargeImage()
        return decode_image(ImageRef(data=file.data), ImageLimits())


class InvertingDecoder(PillowDecoder):
    """What it decodes comes out with its colours inverted: nobody else decodes it like that."""

    def _decoded(self, file: PlainJpeg) -> RgbImage | None:
        image = super()._decoded(file)
        if image is None or isinstance(image, LargeImage):
            return image
        assert isinstance(image, Image.Image)
        return ImageOps.invert(image)


def inverted(data: bytes) -> Image.Image:
    return ImageOps.invert(decode_image(ImageRef(data=data), ImageLimits()))


def cannot_be_opened() -> InvertingDecoder:
    raise RuntimeError("no such device")


class LyingDecoder(PillowDecoder):
    """What a file's comment has after ``lie: `` is sent to the parent as if it were a reply.

    After ``talk, please`` nothing else than that it goes on is said any more.
    """

    def _decoded(self, file: PlainJpeg) -> RgbImage | None:
        with socket.socket(fileno=os.dup(int(sys.argv[1]))) as parent:
            _, _, lie = file.data.partition(b"lie: ")
            if lie:
                send(parent, json.JSONDecoder().raw_decode(lie.decode("latin1"))[0])
            while b"talk, please" in file.data:
                send(parent, {"images": []})
                time.sleep(0.01)
        return super()._decoded(file)
