"""An image as a tensor, resized to Pillow's pixels on any device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlmbatch.models.reduced import Box
from vlmbatch.nvjpeg.resampling import FILTERS
from vlmbatch.nvjpeg.resizing import Axis, Pixels, Resizing, tensor_of


@dataclass(frozen=True, slots=True)
class _Square:
    """What surrounds an image; it takes no memory. ``place``: from the left, from the top."""

    side: int
    place: tuple[int, int]
    color: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class TensorImage:
    """``pixels``: (3, height, width) uint8, perhaps not made yet; a ``DeviceImage``.

    ``mirrored``: they are stored from the bottom to the top, from the right to the left.
    """

    pixels: Pixels
    mirrored: tuple[bool, bool] = (False, False)
    square: _Square | None = None

    @property
    def mode(self) -> str:
        return "RGB"

    @property
    def height(self) -> int:
        return self.pixels.shape[1] if self.square is None else self.square.side

    @property
    def width(self) -> int:
        return self.pixels.shape[2] if self.square is None else self.square.side

    def upright(self, orientation: int | None) -> TensorImage:
        """Turned as EXIF says, without a pixel moved; any other number than 2 to 8 says nothing."""
        assert isinstance(self.pixels, Tensor)
        assert not any(self.mirrored) and self.square is None
        turned = orientation in (5, 6, 7, 8)
        mirrored = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
        return TensorImage(self.pixels.transpose(1, 2) if turned else self.pixels, mirrored)

    def on_square(
        self, side: int, place: tuple[int, int], color: tuple[int, int, int]
    ) -> TensorImage:
        """See ``DeviceImage``."""
        assert self.square is None
        return replace(self, square=_Square(side, place, color))

    def resize(
        self, size: tuple[int, int], resample: Image.Resampling, box: Box | None = None
    ) -> TensorImage:
        """See ``DeviceImage``: its pixels are made by ``make``, or when an array is made of them.

        As in Pillow a pass over lines and one over columns, each rounded to whole numbers. Filters
        that are not among ``FILTERS`` are Pillow's, at once.

        Raises:
            MemoryError: the device has too little memory left.
        """
        whole = (0.0, 0.0, float(self.width), float(self.height))
        left, top, right, bottom = box = box or whole
        if self.square is None and size == (self.width, self.height) and box == whole:
            return self
        if resample not in FILTERS:
            resized = np.array(Image.fromarray(np.asarray(self)).resize(size, resample, box))
            pixels = torch.from_numpy(resized).permute(2, 0, 1)
            return TensorImage(pixels.to(tensor_of(self.pixels).device))
        width, height = size
        x, y = (0, 0) if self.square is None else self.square.place
        _, stored_height, stored_width = self.pixels.shape
        upside_down, backwards = self.mirrored
        down, across = (self.height, top, bottom, height), (self.width, left, right, width)
        # When Pillow 13 begins with columns, as tried with many sizes.
        fewer_lines, fewer_columns = self.height - height, self.width - width
        return TensorImage(
            Resizing(
                self.pixels,
                Axis(down, resample, stored_height, y, upside_down),
                Axis(across, resample, stored_width, x, backwards),
                columns_first=fewer_lines > max(0, 2 * fewer_columns),
                color=(0, 0, 0) if self.square is None else self.square.color,
            )
        )

    def __array__(
        self, dtype: np.dtype[np.uint8] | None = None, copy: bool | None = None
    ) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = tensor_of(self.pixels).permute(1, 2, 0).cpu().numpy()
        down, across = (-1 if mirrored else 1 for mirrored in self.mirrored)
        pixels = np.ascontiguousarray(pixels[::down, ::across])
        if self.square is None:
            return pixels
        page = np.empty((self.height, self.width, 3), np.uint8)
        page[:] = self.square.color
        x, y = self.square.place
        page[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
        return page
