"""How large the steps of an engine may get."""

from __future__ import annotations

from dataclasses import dataclass

from vlmbatch.config import EngineConfig
from vlmbatch.models.config import TextConfig

# Enough for matrix products to run at full rate, where more would only take memory.
_MAX_NUM_SEQS = {"cpu": 128, "cuda": 512}
_MAX_BATCHED_TOKENS = {"cpu": 2048, "cuda": 8192}
_MAX_CACHED_IMAGES = 128  # prompts of several steps; later rows find the image in the KV cache
_VISION_BATCH = 32  # enough to fill a device, small beside the weights


@dataclass(frozen=True, slots=True)
class Limits:
    """``max_num_seqs``: sequences of a step. ``max_cached_images``: images whose features are kept.
    ``max_batched_tokens``: tokens of a step. ``max_model_len``: tokens of a sequence.
    ``vision_batch``: images of one pass of the tower.
    """

    max_num_seqs: int
    max_batched_tokens: int
    max_model_len: int
    vision_batch: int = _VISION_BATCH
    max_cached_images: int = _MAX_CACHED_IMAGES

    @classmethod
    def resolve(cls, config: EngineConfig, text: TextConfig, device: str) -> Limits:
        """What ``config`` asks for, else what suits the type of device ("cpu" or "cuda")."""
        return cls(
            config.max_num_seqs or _MAX_NUM_SEQS[device],
            config.max_batched_tokens or _MAX_BATCHED_TOKENS[device],
            config.max_model_len or text.max_position_embeddings,
        )
