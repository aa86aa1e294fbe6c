"""How large the steps of an engine may get."""

from __future__ import annotations

from dataclasses import dataclass

from vlmbatch.config import EngineConfig
from vlmbatch.models.config import TextConfig

# Enough for matrix products to run at full rate, where more would only take memory.
_MAX_NUM_SEQS = {"cpu": 128, "cuda": 512}
_MAX_BATCHED_TOKENS = {"cpu": 2048, "cuda": 8192}
# Prompts of several steps; later rows find the image in the KV cache.
_CACHED_IMAGE_TOKENS = 73_728
# Enough to fill a device, small beside the weights: 32 images of 576 tokens.
VISION_TOKENS = {"cpu": 4096, "cuda": 18_432}


@dataclass(frozen=True, slots=True)
class Limits:
    """Of sequences, tokens and images."""

    max_num_seqs: int  # sequences of a step
    max_batched_tokens: int  # tokens of a step
    max_model_len: int  # tokens of a sequence
    vision_tokens: int  # image tokens that one pass of the tower makes; of one image any number
    cached_image_tokens: int = _CACHED_IMAGE_TOKENS  # whose embeddings are kept

    @classmethod
    def resolve(cls, config: EngineConfig, text: TextConfig, device: str) -> Limits:
        """What ``config`` asks for, else what suits the type of device ("cpu" or "cuda")."""
        return cls(
            config.max_num_seqs or _MAX_NUM_SEQS[device],
            config.max_batched_tokens or _MAX_BATCHED_TOKENS[device],
            config.max_model_len or text.max_position_embeddings,
            VISION_TOKENS[device],
        )
