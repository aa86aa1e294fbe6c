"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a vision tower over images of any size and a text decoder.

Letters in shapes: M image tokens, E hidden size of the decoder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from vlmbatch_kernels.linear import linear

from vlmbatch.attention.base import (
    AttentionBackend,
    AttentionMetadata,
    AttentionSpec,
    LayerKVCache,
)
from vlmbatch.models.decoder import Decoder
from vlmbatch.models.family import Embedded
from vlmbatch.models.layers import Embedding
from vlmbatch.models.parallel import ParallelContext
from vlmbatch.models.qwen_vl.config import QwenVLConfig
from vlmbatch.models.qwen_vl.image_processor import QwenImageProcessor
from vlmbatch.models.qwen_vl.vision import VisionTower
from vlmbatch.models.weights import CheckpointModel


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
    def extract_features(self, images: Sequence[Tensor]) -> list[Tensor]:
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


class Model(Vision):
    """A whole model: see ``VisionLanguageModel``."""

    def __init__(
        self,
        config: QwenVLConfig,
        images: QwenImageProcessor | None,
        backend: AttentionBackend,
        parallel: ParallelContext,
    ) -> None:
        super().__init__(config, images, backend, parallel)
        text = config.text
        self.language_model = Decoder(text, parallel)
        self.lm_head = (
            None if config.tie_word_embeddings else Embedding(text.vocab_size, text.hidden_size)
        )

    def encode_images(self, images: Sequence[Tensor]) -> list[Tensor]:
        """See ``VisionLanguageModel``: the tower's features are the decoder's embeddings."""
        return self.extract_features(images)

    @torch.inference_mode()
    def project_features(self, features: Sequence[Tensor]) -> list[Tensor]:
        """See ``VisionLanguageModel``."""
        dtype = self.language_model.embed_tokens.weight.dtype
        return [each.to(dtype) for each in features]

    @torch.inference_mode()
    def embed(
        self,
        input_ids: Tensor,
        features: Tensor | None = None,
        feature_rows: Tensor | None = None,
    ) -> Embedded:
        """See ``VisionLanguageModel``."""
        return self.language_model.embed(input_ids, features, feature_rows)

    @torch.inference_mode()
    def forward(
        self,
        embedded: Embedded,
        positions: Tensor,
        kv_caches: list[LayerKVCache],
        metadata: AttentionMetadata,
    ) -> Tensor:
        """See ``VisionLanguageModel``."""
        hidden: Tensor = self.language_model(embedded, positions, kv_caches, metadata, self.backend)
        return hidden

    @torch.inference_mode()
    def compute_logits(self, hidden: Tensor) -> Tensor:
        """See ``VisionLanguageModel``: in the dtype of the hidden states."""
        head = self.language_model.embed_tokens if self.lm_head is None else self.lm_head
        return linear(hidden, head.weight)

    @property
    def attention_specs(self) -> list[AttentionSpec]:
        """What each layer asks of attention; ``num_kv_heads`` are this rank's."""
        return self.language_model.attention_specs

    def is_unused(self, name: str) -> bool:
        if name.startswith("visual."):
            return super().is_unused(name)
        if name == "lm_head.weight":
            return self.config.tie_word_embeddings
        return name.endswith(".rotary_emb.inv_freq")
