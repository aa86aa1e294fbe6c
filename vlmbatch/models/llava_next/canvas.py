"""An image and its tiles as one array of pixels, whose shape tells how many there are. No torch.

For R rows and C columns of tiles of S pixels squared: (ceil(S / C) + R * S, C * S, 3). The first
ceil(S / C) rows hold the whole image in one tile, its S * S pixels one behind the other, and zeros;
below stand the tiles in their places. Without tiles: (S, S, 3), the whole image as it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlmbatch.models.llava_next.tiling import Size


def canvas_size(tiles: Size, side: int) -> Size:
    """Of the array, in pixels; ``tiles``: 0 x 0 for none."""
    columns = max(1, tiles.width)
    return Size(_head_rows(columns, side) + tiles.height * side, columns * side)


def tiles_of(height: int, width: int, side: int) -> Size:
    """The tiles in an array of this size, rows and columns; 0 x 0 for none."""
    columns = width // side
    rows = (height - _head_rows(columns, side)) // side
    return Size(rows, columns) if rows else Size(0, 0)


def join(whole: NDArray[np.uint8], tiled: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The array of a whole image (S, S, 3) and its tiles (R * S, C * S, 3)."""
    side, width = len(whole), tiled.shape[1]
    head = np.zeros((_head_rows(width // side, side), width, 3), np.uint8)
    head.reshape(-1)[: whole.size] = whole.reshape(-1)
    return np.concatenate((head, tiled))


def _head_rows(columns: int, side: int) -> int:
    return -(-side // columns)
