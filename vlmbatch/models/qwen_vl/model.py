"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a vision tower over images of any size and a text decoder.

Letters in shapes: M image tokens, E hidden size of the decoder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from vlmbatch.attention.base import AttentionBackend
from vlmbatch.models.parallel import ParallelContext
from vlmbatch.models.qwen_vl.config import QwenVLConfig
from vlmbatch.models.qwen_vl.image_processor import QwenImageProcessor
from vlmbatch.models.qwen_vl.vision import VisionTower
from vlmbatch.models.text_model import TextModel
from vlmbatch.models.weights import CheckpointModel
from vlmbatch.types import ImageGrid


class Vision(CheckpointModel):
    """The part of a model that looks at pixels. Without ``images`` there is no tower."""

    def __init__(
        self,
        config: QwenVLConfig,
        images: QwenImageProcessor | None,
        backend: AttentionBackend,
        parallel: ParallelContext,
    ) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.visual = None if images is None else VisionTower(config.vision, images)

    @torch.inference_mode()
    def extract_features(
        self, images: Sequence[Tensor], grids: Sequence[ImageGrid]
    ) -> list[Tensor]:
        """See ``VisionModel``."""
        assert self.visual is not None, "the model was built to be given features"
        features: list[Tensor] = self.visual(images, self.backend)
        return features

    @staticmethod
    def parameter_name(tensor_name: str) -> str:
        """See ``CheckpointModel``. Published layouts:

        Qwen2-VL and Qwen2.5-VL: ``model.layers...``, ``visual.blocks...``; Qwen3-VL and
        transformers 5: ``model.language_model.layers...``, ``model.visual.blocks...``. The layers
        of mergers and feed-forward parts have other names in each.
        """
        name = re.sub(r"^model\.(?=language_model\.|visual\.)", "", tensor_name)
        name = re.sub(r"^model\.", "language_model.", name)
        if not name.startswith("visual."):
            return name
        name = name.replace(".ln_q.", ".norm.").replace(".linear_fc", ".fc")
        return name.replace("merger.mlp.0.", "merger.fc1.").replace("merger.mlp.2.", "merger.fc2.")

    def is_unused(self, name: str) -> bool:
        return self.visual is None or not name.startswith("visual.")


class Model(Vision, TextModel):
    """A whole model: see ``VisionLanguageModel``."""

    def __init__(
        self,
        config: QwenVLConfig,
        images: QwenImageProcessor | None,
        backend: AttentionBackend,
        parallel: ParallelContext,
    ) -> None:
        super().__init__(config, images, backend, parallel)
        self.add_decoder(config, parallel)

    def encode_images(self, images: Sequence[Tensor], grids: Sequence[ImageGrid]) -> list[Tensor]:
        """See ``VisionLanguageModel``: the tower's features are the decoder's embeddings."""
        return self.extract_features(images, grids)

    def is_unused(self, name: str) -> bool:
        if name.startswith("visual."):
            return super().is_unused(name)
        if name == "lm_head.weight":
            return self.config.tie_word_embeddings
        return name.endswith(".rotary_emb.inv_freq")
