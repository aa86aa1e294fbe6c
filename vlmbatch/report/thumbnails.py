"""Small pictures of rows, decoded in processes of their own, within a number of bytes."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from vlmbatch.config import ImageLimits, ImageResolution
from vlmbatch.errors import RowError
from vlmbatch.images.loading.pool import ImageWorkers
from vlmbatch.models.device_image import RgbImage
from vlmbatch.models.processor import ImageProcessor, Resized
from vlmbatch.models.reduced import Reduced, box_of
from vlmbatch.types import ImageGrid, ImageRef, PixelImage

SIDE = 320  # pixels, of the longer one
_QUALITY = 75
_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class ThumbnailProcessor(ImageProcessor):
    """An ``ImageProcessor`` whose images are no larger than ``side`` by ``side`` pixels."""

    side: int = SIDE
    fingerprint: str = "thumbnail"

    @property
    def largest_grid(self) -> ImageGrid:
        return self.grid(self.side, self.side)

    def at(self, resolution: ImageResolution | None, row_images: int = 1) -> ThumbnailProcessor:
        return self

    def grid(self, height: int, width: int) -> ImageGrid:
        height, width = self.needed(height, width)
        return ImageGrid(height, width, 1, 3 * height * width)

    def needed(self, height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, self.side / max(height, width))
        return max(1, round(scale * height)), max(1, round(scale * width))

    def resize(self, image: RgbImage, reduced: Reduced | None = None) -> Resized:
        assert isinstance(image, Image.Image)
        whole = reduced or image
        height, width = self.needed(whole.height, whole.width)
        small = image.resize(
            (width, height), Image.Resampling.BICUBIC, box_of(reduced), reducing_gap=2.0
        )
        return Resized((small,), whole.height, whole.width)

    def finish(self, resized: Resized) -> PixelImage:
        (small,) = resized.images
        grid = self.grid(resized.height, resized.width)
        pixels = np.asarray(small)
        return PixelImage(pixels, hashlib.blake2b(pixels.tobytes()).digest(), grid)


@dataclass(slots=True)
class DecodedThumbnails:
    """JPEGs of at most ``max_bytes`` together, as text; at most ``max_images`` of one row.

    To be closed after use.
    """

    limits: ImageLimits
    max_bytes: int
    max_images: int = 4
    num_bytes: int = 0
    num_left_out: int = 0
    _workers: ImageWorkers | None = field(default=None, repr=False)

    def of(self, images: Sequence[ImageRef]) -> list[str]:
        shown = [self._picture(image) for image in images[: self.max_images]]
        if len(images) > self.max_images:
            shown.append(f"and {len(images) - self.max_images} more images")
        return shown

    def close(self) -> None:
        if self._workers is not None:
            self._workers.close()

    def _picture(self, image: ImageRef) -> str:
        if image.url is not None:
            return "an image behind a URL, which is not fetched"
        if self.num_bytes >= self.max_bytes:
            self.num_left_out += 1
            return "left out: the page has as many bytes of pictures as it may"
        if self._workers is None:
            self._workers = ImageWorkers(
                self.limits, ThumbnailProcessor(), 1, _TIMEOUT_SECONDS, 4, decoder="scaled"
            )
        try:
            decoded = self._workers.submit(image).result()
        except RowError as error:
            return f"no picture: {error.message}"
        assert isinstance(decoded, PixelImage)
        file = io.BytesIO()
        Image.fromarray(decoded.pixels).save(file, "JPEG", quality=_QUALITY, optimize=True)
        url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        self.num_bytes += len(url)
        return url
