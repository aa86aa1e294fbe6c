"""An image whose pixels lie on a device, as far as image processors use images. No torch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmbatch.models.reduced import Box


class DeviceImage(Protocol):
    """Upright RGB; ``numpy.asarray`` makes (height, width, 3) uint8 of it, on the host."""

    @property
    def mode(self) -> str:
        """``RGB``, as Pillow calls it."""
        ...

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def resize(
        self, size: tuple[int, int], resample: Image.Resampling, box: Box | None = None
    ) -> DeviceImage:
        """As Pillow's: ``size`` and ``box`` (None: all of it) are width before height.

        Pixels may be made later: with those of other images, or for an array.
        """
        ...

    def on_square(
        self, side: int, place: tuple[int, int], color: tuple[int, int, int]
    ) -> DeviceImage:
        """A square of one colour on which the image lies, its left top corner at ``place``."""
        ...

    def __array__(
        self, dtype: np.dtype[np.uint8] | None = None, copy: bool | None = None
    ) -> NDArray[np.uint8]: ...


RgbImage = Image.Image | DeviceImage
