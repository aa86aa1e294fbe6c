"""The identity of an image in the caches. No torch."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from vlmbatch.types import ImageGrid, PixelImage


def pixel_image(pixels: NDArray[np.uint8], grid: ImageGrid, fingerprint: str) -> PixelImage:
    """Pixels (H, W, 3), contiguous, with their digest.

    The same bytes are another image in another shape, on another grid, or from an image processor
    of another ``fingerprint``.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{fingerprint} {pixels.shape} {grid}".encode())
    digest.update(pixels.data)
    return PixelImage(pixels, digest.digest(), grid)
