"""The half of a vision-language model that reads and writes text: the same in every family.

Letters in shapes: n tokens to sample, E hidden size, V vocabulary.
"""

from __future__ import annotations

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
from vlmbatch.models.config import ModelConfig
from vlmbatch.models.decoder import Decoder
from vlmbatch.models.layers import Embedding
from vlmbatch.models.parallel import ParallelContext
from vlmbatch.models.vision_language_model import Embedded
from vlmbatch.models.weights import CheckpointModel


class TextModel(CheckpointModel):
    """See ``VisionLanguageModel``. ``lm_head``: None where embeddings and head are one."""

    backend: AttentionBackend
    language_model: Decoder
    lm_head: Embedding | None

    def add_decoder(self, config: ModelConfig, parallel: ParallelContext) -> None:
        """Make the decoder and the head, once the module itself is initialised."""
        text = config.text
        self.language_model = Decoder(text, parallel)
        self.lm_head = (
            None if config.tie_word_embeddings else Embedding(text.vocab_size, text.hidden_size)
        )

    @torch.inference_mode()
    def project_features(self, features: Sequence[Tensor]) -> list[Tensor]:
        """See ``VisionLanguageModel``: where the tower's features are the decoder's embeddings."""
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
        """Return logits (n, V), in the dtype of the hidden states (n, E)."""
        head = self.language_model.embed_tokens if self.lm_head is None else self.lm_head
        return linear(hidden, head.weight)

    @torch.inference_mode()
    def kv_scales(self) -> list[Tensor]:
        """See ``VisionLanguageModel``; of this rank's heads."""
        return self.language_model.kv_scales()

    @property
    def attention_specs(self) -> list[AttentionSpec]:
        """What each layer asks of attention; ``num_kv_heads`` are this rank's."""
        return self.language_model.attention_specs
