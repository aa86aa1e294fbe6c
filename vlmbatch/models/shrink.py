"""Images that are scaled down before a model's own processing. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from PIL import Image

from vlmbatch.config import ImageResolution
from vlmbatch.errors import ErrorCode, FieldError, RowError
from vlmbatch.models.device_image import RgbImage
from vlmbatch.models.reduced import Reduced, box_of


@dataclass(frozen=True, slots=True)
class Shrink:
    """Limits to which images are scaled down, never up, in shape as nearly as whole pixels allow.

    Image processors that have no limits of pixels hold one: made by ``of`` when they are loaded, by
    ``at`` in their own ``at``; ``size`` goes before their grids, ``apply`` before their pixels.
    """

    max_pixels: int | None = None
    longest_side: int | None = None

    @classmethod
    def of(cls, resolution: ImageResolution) -> Shrink:
        """What options ask for.

        Raises:
            ConfigError: that images be scaled up.
        """
        if resolution.min_pixels is not None:
            raise FieldError(
                "min_pixels",
                f"is given as {resolution.min_pixels}, but the model scales no images up to a "
                "number of pixels: leave it out",
            )
        return cls(resolution.max_pixels, resolution.longest_side)

    def at(self, resolution: ImageResolution | None) -> Shrink:
        """With the resolution of a row: see ``ImageProcessor``."""
        if resolution is None:
            return self
        if resolution.min_pixels is not None:
            raise RowError(
                ErrorCode.RESOLUTION_INVALID,
                f"min_pixels is {resolution.min_pixels}, but the model scales no images up to a "
                "number of pixels: leave it out or null",
            )
        check_row(resolution, self.max_pixels)
        return replace(self, max_pixels=resolution.max_pixels)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that an image is scaled to first.

        Scaling to ``longest_side`` makes none longer for its width.
        """
        longer = max(height, width)
        if self.longest_side is not None and longer > self.longest_side:
            height, width = (-(-side * self.longest_side // longer) for side in (height, width))
        if self.max_pixels is not None and height * width > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            height, width = (
                max(1, min(int(side / shrink), self.max_pixels)) for side in (height, width)
            )
        return height, width

    def needed(self, height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
        """What is needed of an image of this size that is then resized to ``target``; all heights
        and widths."""
        first = self.size(height, width)
        if first == (height, width):
            return target
        return max(first[0], target[0]), max(first[1], target[1])

    def apply(self, image: Image.Image) -> Image.Image:
        """The image at that size, resampled as models' own processors do; or itself."""
        applied, _ = self.apply_to(image, None)
        assert isinstance(applied, Image.Image)
        return applied

    def apply_to(self, image: RgbImage, reduced: Reduced | None) -> tuple[RgbImage, Reduced | None]:
        """``apply``, and how the image is reduced after it: not, once it is resized."""
        whole = (image.height, image.width) if reduced is None else (reduced.height, reduced.width)
        height, width = self.size(*whole)
        if (height, width) == whole:
            return image, reduced
        return image.resize((width, height), Image.Resampling.BICUBIC, box_of(reduced)), None


NO_SHRINK = Shrink()


def check_row(resolution: ImageResolution, most: int | None) -> None:
    """Refuse a row that asks for more pixels than the run's ``most`` (None: any number).

    Buffers and the steps that memory is measured with are as large as the run's images may be.

    Raises:
        RowError: with both numbers.
    """
    if most is not None and (resolution.max_pixels or 0) > most:
        raise RowError(
            ErrorCode.RESOLUTION_INVALID,
            f"max_pixels is {resolution.max_pixels}, above the run's {most}: rows may ask for "
            "fewer pixels than the run, which --max-pixels gives more",
        )
