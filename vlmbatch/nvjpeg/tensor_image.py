"""An image as a tensor, resized to Pillow's pixels on any device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from vlmbatch_kernels.resample import resample as resample_lines

from vlmbatch.models.reduced import Box
from vlmbatch.nvjpeg.resampling import FILTERS, shares_of


@dataclass(frozen=True, slots=True)
class _Square:
    """What surrounds an image; it takes no memory. ``place``: from the left, from the top."""

    side: int
    place: tuple[int, int]
    color: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class TensorImage:
    """``pixels``: (3, height, width) uint8; a ``DeviceImage``."""

    pixels: Tensor
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
        """Turned as EXIF says; any other number than 2 to 8 says nothing."""
        assert self.square is None
        pixels = self.pixels
        if orientation in (5, 6, 7, 8):
            pixels = pixels.transpose(1, 2)
        if orientation in (2, 3, 6, 7):
            pixels = pixels.flip(2)
        if orientation in (3, 4, 7, 8):
            pixels = pixels.flip(1)
        return TensorImage(pixels)

    def on_square(
        self, side: int, place: tuple[int, int], color: tuple[int, int, int]
    ) -> TensorImage:
        """See ``DeviceImage``."""
        assert self.square is None
        return replace(self, square=_Square(side, place, color))

    def resize(
        self, size: tuple[int, int], resample: Image.Resampling, box: Box | None = None
    ) -> TensorImage:
        """See ``DeviceImage``.

        As in Pillow a pass over lines and one over columns, each rounded to whole numbers. Filters
        that are not among ``FILTERS`` are Pillow's.

        Raises:
            MemoryError: the device has too little memory left.
        """
        whole = (0.0, 0.0, float(self.width), float(self.height))
        box = box or whole
        if self.square is None and size == (self.width, self.height) and box == whole:
            return self
        if resample not in FILTERS:
            resized = Image.fromarray(np.asarray(self)).resize(size, resample, box)
            return TensorImage(torch.from_numpy(np.array(resized)).permute(2, 0, 1))
        width, height = size
        left, top, right, bottom = box
        across = (self.width, left, right, width)
        down = (self.height, top, bottom, height)
        x, y = (0, 0) if self.square is None else self.square.place
        # When Pillow 13 begins with columns, as tried with many sizes.
        fewer_lines, fewer_columns = self.height - height, self.width - width
        columns_first = fewer_lines > max(0, 2 * fewer_columns)
        try:
            if columns_first:
                part = self._resampled(self.pixels.transpose(1, 2), down, y, resample)
                return TensorImage(self._resampled(part.transpose(1, 2), across, x, resample))
            part = self._resampled(self.pixels, across, x, resample).transpose(1, 2)
            return TensorImage(self._resampled(part, down, y, resample).transpose(1, 2))
        except torch.OutOfMemoryError as error:
            raise MemoryError from error

    def _resampled(
        self,
        pixels: Tensor,
        span: tuple[int, float, float, int],
        offset: int,
        resample: Image.Resampling,
    ) -> Tensor:
        """Each of (3, lines, n), which lie on lines of the square from ``offset`` on.

        ``span``: see ``shares_of``.
        """
        first, shares = _on_device(span, offset, resample, pixels.device)
        out = pixels.new_empty(pixels.shape[1], span[3], 3).permute(2, 0, 1)
        color = None
        if self.square is not None:
            color = torch.tensor(self.square.color, dtype=torch.int32).to(pixels.device)
        return resample_lines(pixels, first, shares, out, color)

    def __array__(
        self, dtype: np.dtype[np.uint8] | None = None, copy: bool | None = None
    ) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self.pixels.permute(1, 2, 0).contiguous().cpu().numpy()
        if self.square is None:
            return pixels
        page = np.empty((self.height, self.width, 3), np.uint8)
        page[:] = self.square.color
        x, y = self.square.place
        page[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
        return page


@lru_cache(maxsize=8)  # of photos of one camera, upright and on their side
def _on_device(
    span: tuple[int, float, float, int],
    offset: int,
    resample: Image.Resampling,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """What ``resample_lines`` takes of pixels that begin at ``offset`` of the span's line."""
    found = shares_of(*span, resample)
    return (
        torch.from_numpy(found.first - offset).to(device),
        torch.from_numpy(found.shares).to(device),
    )
