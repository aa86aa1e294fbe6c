"""An image as a tensor, resized by two matrix products: nearly Pillow's pixels, on any device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlmbatch.models.reduced import Box
from vlmbatch.nvjpeg.resampling import FILTERS, weights

# Pixels that are turned into floats at once, twelve bytes each.
_CHUNK_PIXELS = 2**22


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
        device = self.pixels.device
        across = _shares(self.width, left, right, width, resample, device)
        down = _shares(self.height, top, bottom, height, resample, device)
        color = None
        if self.square is not None:
            x, y = self.square.place
            across = across[:, x : x + self.pixels.shape[2]]
            down = down[:, y : y + self.pixels.shape[1]]
            color = torch.tensor(self.square.color, dtype=torch.float32).to(device)
        # Pillow was seen to begin with columns then; begun otherwise, some pixels differ by one.
        columns_first = height < self.height and (
            width >= self.width or self.height > 2 * self.width
        )
        try:
            if columns_first:
                pixels = _along_lines(_along_columns(self.pixels, down, color), across, color)
            else:
                pixels = _along_columns(_along_lines(self.pixels, across, color), down, color)
            return TensorImage(pixels.byte())
        except torch.OutOfMemoryError as error:
            raise MemoryError from error

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
def _shares(
    length: int,
    start: float,
    stop: float,
    count: int,
    resample: Image.Resampling,
    device: torch.device,
) -> Tensor:
    """``weights`` on the device."""
    return torch.from_numpy(weights(length, start, stop, count, resample)).to(device)


def _along_lines(pixels: Tensor, shares: Tensor, color: Tensor | None) -> Tensor:
    """(3, lines, n) resized by ``shares`` (count, n): (3, lines, count), whole numbers in float32.

    What ``shares`` lack of 1 is that of ``color`` (3,), where there is one.
    """
    chunks = torch.split(pixels, max(1, _CHUNK_PIXELS // pixels.shape[2]), dim=1)
    parts = [chunk.float() @ shares.T for chunk in chunks]
    if color is not None:
        rest = color[:, None, None] * (1 - shares.sum(1))
        parts = [part + rest for part in parts]
    return _rounded(parts, dim=1)


def _along_columns(pixels: Tensor, shares: Tensor, color: Tensor | None) -> Tensor:
    """(3, n, columns) by ``shares`` (count, n): (3, count, columns), as by ``_along_lines``."""
    chunks = torch.split(pixels, max(1, _CHUNK_PIXELS // pixels.shape[1]), dim=2)
    parts = [shares @ chunk.float() for chunk in chunks]
    if color is not None:
        rest = color[:, None, None] * (1 - shares.sum(1))[:, None]
        parts = [part + rest for part in parts]
    return _rounded(parts, dim=2)


def _rounded(parts: list[Tensor], dim: int) -> Tensor:
    """To whole numbers from 0 to 255; few operations, as a GPU is lent between others'."""
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
    return whole.add_(0.5).floor_().clamp_(0, 255)
