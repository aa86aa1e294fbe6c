"""Images as a checkpoint's processor is given them: upright RGB, perhaps scaled down. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vlmbatch.config import ImageResolution
from vlmbatch.models.device_image import RgbImage
from vlmbatch.models.image_hash import pixel_image
from vlmbatch.models.processor import ImageProcessor, Resized
from vlmbatch.models.reduced import Reduced
from vlmbatch.models.shrink import NO_SHRINK, Shrink
from vlmbatch.types import ImageGrid, PixelImage


@dataclass(frozen=True, slots=True)
class UprightImages(ImageProcessor):
    """An ``ImageProcessor`` that at most scales down; ``max_pixels``: of an image in its file.

    How many tokens an image takes is not known here: grids count none.
    """

    max_pixels: int
    shrink: Shrink = NO_SHRINK

    @property
    def fingerprint(self) -> str:
        """See ``ImageProcessor``."""
        return f"upright {self.shrink}"

    @property
    def largest_grid(self) -> ImageGrid:
        """See ``ImageProcessor``."""
        most = min(self.max_pixels, self.shrink.max_pixels or self.max_pixels)
        if self.shrink.longest_side is not None:
            most = min(most, self.shrink.longest_side**2)
        return _grid(1, most)

    def at(self, resolution: ImageResolution | None, row_images: int = 1) -> UprightImages:
        """See ``ImageProcessor``."""
        return replace(self, shrink=self.shrink.at(resolution))

    def grid(self, height: int, width: int) -> ImageGrid:
        """See ``ImageProcessor``."""
        return _grid(*self.shrink.size(height, width))

    def needed(self, height: int, width: int) -> tuple[int, int]:
        """See ``ImageProcessor``."""
        return self.shrink.size(height, width)

    def resize(self, image: RgbImage, reduced: Reduced | None = None) -> Resized:
        """See ``ImageProcessor``."""
        assert image.mode == "RGB", image.mode
        whole = reduced or image
        image, _ = self.shrink.apply_to(image, reduced)
        return Resized((image,), whole.height, whole.width)

    def finish(self, resized: Resized) -> PixelImage:
        """See ``ImageProcessor``."""
        (image,) = resized.images
        grid = self.grid(resized.height, resized.width)
        return pixel_image(np.array(image, order="C"), grid, self.fingerprint)


def _grid(height: int, width: int) -> ImageGrid:
    return ImageGrid(height, width, num_tokens=0, num_bytes=3 * height * width)
