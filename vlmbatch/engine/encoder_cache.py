"""What the decoder sees of an image, by content: computed once for all rows that show it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from vlmbatch.engine.image_upload import ImageUpload
from vlmbatch.types import FeatureImage, ImageInput, PixelImage


class EncoderCache:
    """Keeps the features of the last images used, up to ``max_images`` of them."""

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
        max_images: int,
        batch_images: int,
        device: torch.device,
    ) -> None:
        """``encode`` takes (N, H, W, 3) uint8 pixels, and ``project`` (N, tokens, C) output of the
        vision tower, on ``device`` to (N, tokens, hidden)."""
        self._encode = encode
        self._project = project
        self._max_images = max_images
        self._batch_images = batch_images
        self._upload = ImageUpload(device)
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()
        self.num_encoded = 0

    def get(
        self, images: Iterable[ImageInput], upcoming: Iterable[ImageInput] = ()
    ) -> dict[bytes, Tensor]:
        """Features (tokens, hidden) of each image, by content hash; encodes those it lacks.

        When there is something to encode, images of ``upcoming`` fill its last batch up.
        """
        wanted = {image.content_hash: image for image in images}
        missing = [image for key, image in wanted.items() if key not in self._features]
        if missing:
            missing += self._fill_up(-len(missing) % self._batch_images, wanted, upcoming)
        found = {key: self._features[key] for key in wanted if key in self._features}
        for part in self._batches(missing):
            for image, features in zip(part, self._compute(part), strict=True):
                # A view would keep the whole batch for as long as one of its images is kept.
                found[image.content_hash] = features.clone()
            self.num_encoded += len(part)
        for key, features in found.items():
            self._features[key] = features
            self._features.move_to_end(key)
        while len(self._features) > self._max_images:
            self._features.popitem(last=False)
        return found

    def _batches(self, images: Sequence[ImageInput]) -> Iterator[Sequence[ImageInput]]:
        """Full batches, each of one kind of image."""
        for kind in (PixelImage, FeatureImage):
            alike = [image for image in images if isinstance(image, kind)]
            for first in range(0, len(alike), self._batch_images):
                yield alike[first : first + self._batch_images]

    def _compute(self, batch: Sequence[ImageInput]) -> Tensor:
        pixels = [image.pixels for image in batch if isinstance(image, PixelImage)]
        if pixels:
            return self._encode(self._upload.pixels(pixels))
        features = [_tensor(image) for image in batch if isinstance(image, FeatureImage)]
        return self._project(self._upload.features(features))

    def _fill_up(
        self, places: int, wanted: dict[bytes, ImageInput], upcoming: Iterable[ImageInput]
    ) -> list[ImageInput]:
        found: dict[bytes, ImageInput] = {}
        for image in upcoming:
            if len(found) == places:
                break
            if image.content_hash not in wanted and image.content_hash not in self._features:
                found[image.content_hash] = image
        return list(found.values())


def _tensor(image: FeatureImage) -> Tensor:
    tensor = torch.from_numpy(image.features)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
