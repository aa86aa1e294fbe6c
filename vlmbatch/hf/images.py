"""Images as a checkpoint's own processor is given them: upright RGB of their own size. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlmbatch.models.image_hash import pixel_image
from vlmbatch.types import ImageGrid, PixelImage


@dataclass(frozen=True, slots=True)
class UprightImages:
    """An ``ImageProcessor`` that changes nothing; ``max_pixels``: of an image.

    How many tokens an image takes is not known here: grids count none.
    """

    max_pixels: int

    @property
    def fingerprint(self) -> str:
        """See ``ImageProcessor``."""
        return "upright"

    @property
    def largest_grid(self) -> ImageGrid:
        """See ``ImageProcessor``."""
        return self.grid(1, self.max_pixels)

    def grid(self, height: int, width: int) -> ImageGrid:
        """See ``ImageProcessor``."""
        return ImageGrid(height, width, num_tokens=0, num_bytes=3 * height * width)

    def process(self, image: Image.Image) -> PixelImage:
        """See ``ImageProcessor``."""
        assert image.mode == "RGB", image.mode
        pixels = np.array(image, order="C")
        return pixel_image(pixels, self.grid(image.height, image.width), self.fingerprint)
