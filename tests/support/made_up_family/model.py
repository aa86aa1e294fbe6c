from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from made_up_family.config import MadeUpConfig
from made_up_family.processor import PATCH, MadeUpImages
from vlmbatch.attention.base import (
    AttentionBackend,
    AttentionSpec,
)
from vlmbatch.models.linear import ColumnLinear, Part, QKVLinear
from vlmbatch.models.parallel import ParallelContext
from vlmbatch.models.text_model import TextModel
from vlmbatch.models.weights import CheckpointModel
from vlmbatch.types import ImageGrid

HEADS = 2


class TowerLayer(nn.Module):
    def __init__(self, size: int, parallel: ParallelContext) -> None:
        super().__init__()
        dim = size // HEADS
        self.qkv_proj = QKVLinear(size, HEADS, HEADS, dim, True, parallel)
        self.spec = AttentionSpec(HEADS, HEADS, dim, scale=dim**-0.5, causal=False)

    def forward(self, x: Tensor, lengths: list[int], backend: AttentionBackend) -> Tensor:
        query, key, value = self.qkv_proj(x).view(len(x), 3, HEADS, -1).unbind(1)
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=x.device)
        return x + backend.varlen(query, key, value, ends, max(lengths), self.spec).flatten(1)


class Tower(nn.Module):
    def __init__(self, config: MadeUpConfig, parallel: ParallelContext) -> None:
        super().__init__()
        size = config.tower_size
        whole = parallel.share
        self.patch = ColumnLinear(3 * PATCH**2, (Part("patch", whole(size)),), bias=True)
        self.rows = TowerLayer(size, parallel)
        self.whole = TowerLayer(size, parallel)
        self.merge = ColumnLinear(size, (Part("merge", whole(config.feature_size)),), bias=True)

    def forward(self, images: Sequence[Tensor], backend: AttentionBackend) -> list[Tensor]:
        grids = [(len(image) // PATCH, image.shape[1] // PATCH) for image in images]
        patches = [
            image.view(height, PATCH, width, PATCH, 3).transpose(1, 2).flatten(2).flatten(0, 1)
            for image, (height, width) in zip(images, grids, strict=True)
        ]
        x = torch.cat(patches).to(self.patch.weight.dtype) / 128 - 1
        x = self.rows(
            self.patch(x), [width for height, width in grids for _ in range(height)], backend
        )
        sizes = [height * width for height, width in grids]
        return list(torch.split(self.merge(self.whole(x, sizes, backend)), sizes))


class Vision(CheckpointModel):
    def __init__(
        self,
        config: MadeUpConfig,
        images: MadeUpImages | None,
        backend: AttentionBackend,
        parallel: ParallelContext,
    ) -> None:
        super().__init__()
        self.backend = backend
        self.tower = None if images is None else Tower(config, parallel)

    @torch.inference_mode()
    def extract_features(
        self, images: Sequence[Tensor], grids: Sequence[ImageGrid]
    ) -> list[Tensor]:
        assert self.tower is not None
        features: list[Tensor] = self.tower(images, self.backend)
        return features

    @staticmethod
    def parameter_name(tensor_name: str) -> str:
        return tensor_name

    def is_unused(self, name: str) -> bool:
        return self.tower is None or not name.startswith("tower.")


class Model(Vision, TextModel):
    def __init__(
        self,
        config: MadeUpConfig,
        images: MadeUpImages | None,
        backend: AttentionBackend,
        parallel: ParallelContext,
    ) -> None:
        super().__init__(config, images, backend, parallel)
        self.add_decoder(config, parallel)

    def encode_images(self, images: Sequence[Tensor], grids: Sequence[ImageGrid]) -> list[Tensor]:
        return self.extract_features(images, grids)

    def is_unused(self, name: str) -> bool:
        return self.tower is None and name.startswith("tower.")
