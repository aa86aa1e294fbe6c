"""What the decoder sees of an image, by content: computed once for all rows that show it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from vlmbatch.engine.image_upload import ImageUpload
from vlmbatch.types import FeatureImage, ImageGrid, ImageInput, PixelImage

Encode = Callable[[Sequence[Tensor], Sequence[ImageGrid]], list[Tensor]]
Project = Callable[[Sequence[Tensor]], list[Tensor]]


class EncoderCache:
    """Keeps the embeddings of the last images used, up to ``max_tokens`` image tokens of them.

    The last image is kept whatever its size: the next chunk of its prompt will ask for it.
    """

    def __init__(
        self,
        encode: Encode,
        project: Project,
        max_tokens: int,
        batch_tokens: int,
        device: torch.device,
    ) -> None:
        """``encode`` and ``project``: see ``VisionLanguageModel``; they are given images on
        ``device``, ``batch_tokens`` image tokens of them at most (or one image)."""
        self._encode = encode
        self._project = project
        self._max_tokens = max_tokens
        self._batch_tokens = batch_tokens
        self._upload = ImageUpload(device)
        self._embeds: OrderedDict[bytes, Tensor] = OrderedDict()
        self._num_tokens = 0
        self.num_encoded = 0  # images

    def get(
        self, images: Iterable[ImageInput], upcoming: Iterable[ImageInput] = ()
    ) -> dict[bytes, Tensor]:
        """Embeddings (tokens, levels * E) of each image, by content hash; encodes those it lacks.

        When there is something to encode, images of ``upcoming`` fill its last batch up.
        """
        wanted = {image.content_hash: image for image in images}
        missing = [image for key, image in wanted.items() if key not in self._embeds]
        if missing:
            missing += self._fill_up(self._room_behind(missing), wanted, upcoming)
        found = {key: self._embeds[key] for key in wanted if key in self._embeds}
        for batch in self._batches(missing):
            for image, embeds in zip(batch, self._compute(batch), strict=True):
                assert len(embeds) == image.grid.num_tokens
                # A view would keep the whole batch for as long as one of its images is kept.
                found[image.content_hash] = embeds.clone()
            self.num_encoded += len(batch)
        for key, embeds in found.items():
            self._keep(key, embeds)
        return found

    def _keep(self, key: bytes, embeds: Tensor) -> None:
        if key not in self._embeds:
            self._num_tokens += len(embeds)
        self._embeds[key] = embeds
        self._embeds.move_to_end(key)
        while self._num_tokens > self._max_tokens and len(self._embeds) > 1:
            _, dropped = self._embeds.popitem(last=False)
            self._num_tokens -= len(dropped)

    def _batches(self, images: Sequence[ImageInput]) -> Iterator[list[ImageInput]]:
        """As many images at a time as fit, each batch of one kind of image."""
        for kind in (PixelImage, FeatureImage):
            batch: list[ImageInput] = []
            num_tokens = 0
            for image in images:
                if not isinstance(image, kind):
                    continue
                if batch and num_tokens + image.grid.num_tokens > self._batch_tokens:
                    yield batch
                    batch, num_tokens = [], 0
                batch.append(image)
                num_tokens += image.grid.num_tokens
            if batch:
                yield batch

    def _compute(self, batch: Sequence[ImageInput]) -> list[Tensor]:
        pixels = [image.pixels for image in batch if isinstance(image, PixelImage)]
        if pixels:
            grids = [image.grid for image in batch]
            return self._encode(self._upload.pixels(pixels), grids)
        features = [_tensor(image) for image in batch if isinstance(image, FeatureImage)]
        return self._project(self._upload.features(features))

    def _room_behind(self, images: Sequence[ImageInput]) -> int:
        """Image tokens that the last batch of ``images`` leaves free."""
        *_, last = self._batches(images)
        return self._batch_tokens - sum(image.grid.num_tokens for image in last)

    def _fill_up(
        self, room: int, wanted: dict[bytes, ImageInput], upcoming: Iterable[ImageInput]
    ) -> list[ImageInput]:
        """The first of ``upcoming`` that are new, as long as they fit."""
        found: dict[bytes, ImageInput] = {}
        if room <= 0:
            return []
        for image in upcoming:
            key = image.content_hash
            if key in wanted or key in self._embeds or key in found:
                continue
            room -= image.grid.num_tokens
            if room < 0:
                break
            found[key] = image
            if room == 0:
                break
        return list(found.values())


def _tensor(image: FeatureImage) -> Tensor:
    tensor = torch.from_numpy(image.features)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
