"""Runs one step of the model: images to features, tokens to logits, logits to tokens."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vlmbatch.attention.base import AttentionMetadata, LayerKVCache
from vlmbatch.engine.batch import StepInputs
from vlmbatch.engine.encoder_cache import EncoderCache
from vlmbatch.engine.sampler import sample


class Model(Protocol):
    """What the engine needs of a model. Letters: T tokens, E hidden size, V vocabulary."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 to (N, tokens, E)."""
        ...

    def embed(
        self,
        input_ids: Tensor,
        features: Tensor | None = None,
        feature_rows: Tensor | None = None,
    ) -> Tensor:
        """(T,) int64 to (T, E); row ``feature_rows[t]`` of ``features`` (M, E) where not -1."""
        ...

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        kv_caches: list[LayerKVCache],
        metadata: AttentionMetadata,
    ) -> Tensor:
        """(T, E) and positions (T,) or (3, T) to hidden states (T, E)."""
        ...

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """(n, E) to (n, V), in any float dtype."""
        ...


class ModelRunner:
    """Holds the model and its caches on one device."""

    def __init__(
        self,
        model: Model,
        kv_caches: list[LayerKVCache],
        device: torch.device,
        max_cached_images: int,
        vision_batch: int,
    ) -> None:
        self._model = model
        self._kv_caches = kv_caches
        self._device = device
        self.encoder_cache = EncoderCache(self._encode, max_cached_images, vision_batch)

    @torch.inference_mode()
    def run(self, inputs: StepInputs) -> list[int]:
        """Compute the step; the sampled token of each of ``inputs.sampled``."""
        embeds = self._embed(inputs)
        hidden = self._model.forward(embeds, inputs.positions, self._kv_caches, inputs.metadata)
        if not inputs.sampled:
            return []
        logits = self._model.compute_logits(hidden[inputs.sample_tokens])
        params = [sequence.request.sampling for sequence in inputs.sampled]
        token_ids: list[int] = sample(logits, params, inputs.sample_positions).tolist()
        return token_ids

    def _encode(self, pixels: Tensor) -> Tensor:
        return self._model.encode_images(pixels.to(self._device, non_blocking=True))

    def _embed(self, inputs: StepInputs) -> Tensor:
        if not inputs.image_rows:
            return self._model.embed(inputs.input_ids)
        features = self.encoder_cache.get(rows.image for rows in inputs.image_rows)
        feature_rows = np.full(len(inputs.input_ids), -1)
        parts = []
        num_rows = 0
        for rows in inputs.image_rows:
            parts.append(features[rows.image.content_hash][rows.first : rows.first + rows.length])
            feature_rows[rows.token : rows.token + rows.length] = np.arange(
                num_rows, num_rows + rows.length
            )
            num_rows += rows.length
        placed = torch.from_numpy(feature_rows).to(self._device, non_blocking=True)
        return self._model.embed(inputs.input_ids, torch.cat(parts), placed)
