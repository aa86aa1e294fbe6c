"""LLaVA (Liu et al. 2023): a vision tower, a projector and a text decoder.

Letters in shapes: N images, L tokens of an image, C numbers in a feature of the tower's, E hidden
size of the decoder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from vlmbatch_kernels.image_patches import normalize_patches

from vlmbatch.attention.base import AttentionBackend
from vlmbatch.models.layers import ACTIVATIONS, DerivedBuffers
from vlmbatch.models.linear import ColumnLinear, Part, RowLinear
from vlmbatch.models.llava.config import LlavaConfig, TowerConfig
from vlmbatch.models.llava.image_processor import LlavaImageProcessor
from vlmbatch.models.llava.vision import VisionTower
from vlmbatch.models.parallel import ParallelContext
from vlmbatch.models.text_model import TextModel
from vlmbatch.models.weights import CheckpointModel
from vlmbatch.types import ImageGrid


class Projector(nn.Module):
    """Two projections from the tower's features to the decoder's embeddings."""

    def __init__(self, config: TowerConfig, parallel: ParallelContext) -> None:
        super().__init__()
        size, bias = config.text.hidden_size, config.projector_bias
        share = parallel.share(size)
        self.linear_1 = ColumnLinear(config.tower_feature_size, (Part("linear_1", share),), bias)
        self.act = ACTIVATIONS[config.projector_act]
        self.linear_2 = RowLinear(share, size, bias, parallel)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(self.act(self.linear_1(x)))
        return out


class PixelNormalizer(DerivedBuffers):
    """Bytes of pixels to the patches that the tower takes, see ``normalize_patches``."""

    scale: Tensor
    bias: Tensor

    def __init__(self, scale: tuple[float, ...], bias: tuple[float, ...], patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.coefficients = (scale, bias)
        self.register_buffer("scale", torch.empty(3), persistent=False)
        self.register_buffer("bias", torch.empty(3), persistent=False)

    def fill_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        self.scale, self.bias = (
            torch.tensor(values, dtype=torch.float32, device=device) for values in self.coefficients
        )
        self.dtype = dtype

    def forward(self, pixels: Tensor) -> Tensor:
        return normalize_patches(pixels, self.scale, self.bias, self.patch_size, self.dtype)


class Scaling(Protocol):
    """What makes bytes of pixels the tower's input: factors and summands, one a channel."""

    @property
    def scale(self) -> tuple[float, float, float]: ...

    @property
    def bias(self) -> tuple[float, float, float]: ...


class TowerModel(CheckpointModel):
    """The part of a model that looks at pixels: the tower, and which features it keeps.

    Parameters are named as transformers 5 names them, less a prefix. Without ``images`` there is no
    tower: images then come as features.
    """

    def __init__(
        self,
        config: TowerConfig,
        images: Scaling | None,
        backend: AttentionBackend,
        parallel: ParallelContext,
    ) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.pixel_normalizer: PixelNormalizer | None = None
        self.vision_tower: VisionTower | None = None
        if images is not None:
            patch_size = config.vision.patch_size
            self.pixel_normalizer = PixelNormalizer(images.scale, images.bias, patch_size)
            self.vision_tower = VisionTower(config.vision, config.feature_layers, parallel)

    def tower_features(self, pixels: Tensor) -> Tensor:
        """Pixels (N, H, W, 3) uint8 of the tower's size to (N, tower_tokens, C)."""
        assert self.pixel_normalizer is not None, "the model was built to be given features"
        assert self.vision_tower is not None
        patches = self.pixel_normalizer(pixels)
        features: Tensor = self.vision_tower(patches, self.backend)
        return features[:, 1:] if self.config.drop_class_token else features

    @staticmethod
    def parameter_name(tensor_name: str) -> str:
        """See ``CheckpointModel``. Published layouts, and mixtures of the two:

        llava-hf: ``language_model.model.layers...``, ``language_model.lm_head.weight``,
        ``vision_tower.vision_model...``; transformers 5: ``model.language_model.layers...``,
        ``lm_head.weight``, ``model.vision_tower...``.
        """
        name = re.sub(
            r"^model\.(?=language_model\.|vision_tower\.|multi_modal_projector\.)", "", tensor_name
        )
        name = name.removeprefix("language_model.") if ".lm_head." in name else name
        name = re.sub(r"^language_model\.model\.", "language_model.", name)
        return re.sub(r"^vision_tower\.vision_model\.", "vision_tower.", name)

    def is_unused(self, name: str) -> bool:
        if not name.startswith("vision_tower.") or self.vision_tower is None:
            return True
        if layer := re.match(r"vision_tower\.encoder\.layers\.(\d+)\.", name):
            built = len(self.vision_tower.encoder.layers)
            return built <= int(layer[1]) < self.config.vision.num_layers
        return bool(re.match(r"vision_tower\.(post_layernorm\.|head\.|.*\.position_ids$)", name))


class Vision(TowerModel):
    """See ``VisionModel``; all images have the tower's size."""

    @torch.inference_mode()
    def extract_features(
        self, images: Sequence[Tensor], grids: Sequence[ImageGrid]
    ) -> list[Tensor]:
        """See ``VisionModel``."""
        return list(self.tower_features(torch.stack(list(images))))


class Model(Vision, TextModel):
    """A whole LLaVA model: see ``VisionLanguageModel``."""

    def __init__(
        self,
        config: LlavaConfig,
        images: LlavaImageProcessor | None,
        backend: AttentionBackend,
        parallel: ParallelContext,
    ) -> None:
        super().__init__(config, images, backend, parallel)
        self.multi_modal_projector = Projector(config, parallel)
        self.add_decoder(config, parallel)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Tensor], grids: Sequence[ImageGrid]) -> list[Tensor]:
        """See ``VisionLanguageModel``; all images have the tower's size."""
        features = self.tower_features(torch.stack(list(images)))
        return list(self.multi_modal_projector(features))

    @torch.inference_mode()
    def project_features(self, features: Sequence[Tensor]) -> list[Tensor]:
        """See ``VisionLanguageModel``."""
        dtype = self.language_model.embed_tokens.weight.dtype
        return list(self.multi_modal_projector(torch.stack(list(features)).to(dtype)))

    def is_unused(self, name: str) -> bool:
        if name.startswith("vision_tower."):
            return super().is_unused(name)
        if name == "lm_head.weight":
            return self.config.tie_word_embeddings
        return name.endswith((".position_ids", ".rotary_emb.inv_freq"))
