"""LLaVA-NeXT and LLaVA-OneVision: a tower over tiles, a projector and a text decoder.

Letters in shapes: S pixels along a side of a tile, P features along it, E hidden size of the
decoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmbatch.attention.base import AttentionBackend
from vlmbatch.models.llava.model import Projector, TowerModel
from vlmbatch.models.llava_next.canvas import tiles_of
from vlmbatch.models.llava_next.config import LlavaNextConfig
from vlmbatch.models.llava_next.image_processor import LlavaNextImageProcessor
from vlmbatch.models.llava_next.tiling import Size, scaled_down
from vlmbatch.models.parallel import ParallelContext
from vlmbatch.models.text_model import TextModel
from vlmbatch.types import ImageGrid

# Features of a pass of the tower at most. Batches are bounded by what the decoder sees, which may
# be far fewer: those of padding are cut off, and others scaled down.
_MAX_TOWER_TOKENS = 18_432


class Arrangement(nn.Module):
    """The embeddings of an image's tiles in the order in which the decoder reads them."""

    def __init__(self, config: LlavaNextConfig) -> None:
        super().__init__()
        self.patches = config.patches
        self.max_features = config.max_features
        self.newline = nn.Parameter(torch.empty(config.text.hidden_size), requires_grad=False)

    def forward(self, embeddings: Tensor, tiles: Size, kept: Size) -> Tensor:
        """(1 + tiles, P * P, E), the whole image first, to (tokens, E).

        ``kept``: rows and columns of features in the middle of the tiles.
        """
        whole, rest = embeddings[0], embeddings[1:]
        if not tiles.area:
            return torch.cat((whole, self.newline[None]))
        size = (tiles.height, tiles.width, self.patches, self.patches)
        rows = rest.view(*size, -1).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        top, left = (len(rows) - kept.height) // 2, (rows.shape[1] - kept.width) // 2
        rows = rows[top : top + kept.height, left : left + kept.width]
        smaller = scaled_down(kept, self.max_features)
        if smaller != kept:
            channels_first = rows.permute(2, 0, 1)[None]
            rows = F.interpolate(channels_first, smaller, mode="bilinear")[0].permute(1, 2, 0)
        newlines = self.newline.expand(len(rows), 1, -1)
        return torch.cat((whole, torch.cat((rows, newlines), dim=1).flatten(0, 1)))


class Vision(TowerModel):
    """What turns pixels into what the decoder is given: tower, projector, arrangement.

    Without ``images`` there is none of them.
    """

    config: LlavaNextConfig

    def __init__(
        self,
        config: LlavaNextConfig,
        images: LlavaNextImageProcessor | None,
        backend: AttentionBackend,
        parallel: ParallelContext,
    ) -> None:
        scaling = None if images is None else images.normalization
        super().__init__(config, scaling, backend, parallel)
        self.multi_modal_projector: Projector | None = None
        self.arrangement: Arrangement | None = None
        if images is not None:
            self.multi_modal_projector = Projector(config, parallel)
            self.arrangement = Arrangement(config)

    @torch.inference_mode()
    def extract_features(
        self, images: Sequence[Tensor], grids: Sequence[ImageGrid]
    ) -> list[Tensor]:
        """See ``VisionModel``; pixels as ``canvas`` lays them out."""
        assert self.arrangement is not None, "the model was built to be given features"
        side = self.config.vision.image_size
        tiles = [tiles_of(len(image), image.shape[1], side) for image in images]
        counts = [1 + each.area for each in tiles]
        features: list[Tensor] = []
        for group in _groups(counts, self._max_tiles):
            pixels = torch.cat([cut_out(images[i], tiles[i], side) for i in group])
            embeddings = torch.split(self._embed_tiles(pixels), [counts[i] for i in group])
            for i, embedded in zip(group, embeddings, strict=True):
                kept = Size(grids[i].height, grids[i].width)
                features.append(self.arrangement(embedded, tiles[i], kept))
        return features

    @property
    def _max_tiles(self) -> int:
        """Of a pass of the tower."""
        return max(1, _MAX_TOWER_TOKENS // self.config.tower_tokens)

    def _embed_tiles(self, pixels: Tensor) -> Tensor:
        """Tiles (N, S, S, 3) uint8 to (N, P * P, E), as even a number at a time as can be."""
        assert self.multi_modal_projector is not None
        num_passes = math.ceil(len(pixels) / self._max_tiles)
        parts = torch.split(pixels, math.ceil(len(pixels) / num_passes))
        return torch.cat([self.multi_modal_projector(self.tower_features(part)) for part in parts])

    @staticmethod
    def parameter_name(tensor_name: str) -> str:
        """See ``CheckpointModel``. Published layouts are LLaVA's, with ``image_newline``."""
        if tensor_name.removeprefix("model.") == "image_newline":
            return "arrangement.newline"
        return TowerModel.parameter_name(tensor_name)

    def is_unused(self, name: str) -> bool:
        if name.startswith(("multi_modal_projector.", "arrangement.")):
            return self.multi_modal_projector is None
        return super().is_unused(name)


class Model(Vision, TextModel):
    """A whole model: see ``VisionLanguageModel``."""

    def __init__(
        self,
        config: LlavaNextConfig,
        images: LlavaNextImageProcessor | None,
        backend: AttentionBackend,
        parallel: ParallelContext,
    ) -> None:
        super().__init__(config, images, backend, parallel)
        self.add_decoder(config, parallel)

    def encode_images(self, images: Sequence[Tensor], grids: Sequence[ImageGrid]) -> list[Tensor]:
        """See ``VisionLanguageModel``: features are the decoder's embeddings."""
        return self.extract_features(images, grids)

    def is_unused(self, name: str) -> bool:
        if name.startswith(("vision_tower.", "multi_modal_projector.", "arrangement.")):
            return super().is_unused(name)
        if name == "lm_head.weight":
            return self.config.tie_word_embeddings
        return name.endswith((".position_ids", ".rotary_emb.inv_freq"))


def _groups(counts: Sequence[int], most: int) -> Iterator[range]:
    """Adjacent images of up to ``most`` tiles together, or of one image; ``counts``: of each."""
    start = total = 0
    for i, count in enumerate(counts):
        if i > start and total + count > most:
            yield range(start, i)
            start, total = i, 0
        total += count
    yield range(start, len(counts))


def cut_out(pixels: Tensor, tiles: Size, side: int) -> Tensor:
    """What ``canvas.join`` has put together, (1 + tiles, S, S, 3): the whole image first."""
    whole = pixels.reshape(-1)[: 3 * side * side].view(1, side, side, 3)
    if not tiles.area:
        return whole
    rows = pixels[len(pixels) - tiles.height * side :]
    rows = rows.view(tiles.height, side, tiles.width, side, 3)
    return torch.cat((whole, rows.transpose(1, 2).flatten(0, 1)))
