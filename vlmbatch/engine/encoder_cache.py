"""Image features by content, so that an image is encoded once for all rows that show it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from vlmbatch.types import PixelImage


class EncoderCache:
    """Keeps the features of the last images used, up to ``max_images`` of them."""

    def __init__(
        self, encode: Callable[[Tensor], Tensor], max_images: int, batch_images: int
    ) -> None:
        """``encode`` takes (N, H, W, 3) uint8 pixels on the host to (N, tokens, hidden)."""
        self._encode = encode
        self._max_images = max_images
        self._batch_images = batch_images
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()
        self.num_encoded = 0

    def get(
        self, images: Iterable[PixelImage], upcoming: Iterable[PixelImage] = ()
    ) -> dict[bytes, Tensor]:
        """Features (tokens, hidden) of each image, by content hash; encodes those it lacks.

        When there is something to encode, images of ``upcoming`` fill its last batch up.
        """
        wanted = {image.content_hash: image for image in images}
        missing = [image for key, image in wanted.items() if key not in self._features]
        if missing:
            missing += self._fill_up(-len(missing) % self._batch_images, wanted, upcoming)
        found = {key: self._features[key] for key in wanted if key in self._features}
        for first in range(0, len(missing), self._batch_images):
            part = missing[first : first + self._batch_images]
            pixels = torch.from_numpy(np.stack([image.pixels for image in part]))
            for image, features in zip(part, self._encode(pixels), strict=True):
                # A view would keep the whole batch for as long as one of its images is kept.
                found[image.content_hash] = features.clone()
            self.num_encoded += len(part)
        for key, features in found.items():
            self._features[key] = features
            self._features.move_to_end(key)
        while len(self._features) > self._max_images:
            self._features.popitem(last=False)
        return found

    def _fill_up(
        self, places: int, wanted: dict[bytes, PixelImage], upcoming: Iterable[PixelImage]
    ) -> list[PixelImage]:
        found: dict[bytes, PixelImage] = {}
        for image in upcoming:
            if len(found) == places:
                break
            if image.content_hash not in wanted and image.content_hash not in self._features:
                found[image.content_hash] = image
        return list(found.values())
