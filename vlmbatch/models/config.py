"""A checkpoint's ``config.json``, normalised once into frozen dataclasses. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding. "linear" divides positions by ``factor``; "llama3" is Llama 3.1's."""

    theta: float = 10_000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True, slots=True)
class TextConfig:
    """A decoder-only text model of the Llama family."""

    model_type: Literal["llama", "mistral", "qwen2"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    hidden_act: str = "silu"
    attention_bias: bool = False  # bias on q, k and v
    output_bias: bool = False  # bias on o
    mlp_bias: bool = False
    sliding_windows: tuple[int | None, ...] = ()  # one for each layer
    rope: RopeConfig = field(default_factory=RopeConfig)


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """A vision transformer tower."""

    model_type: Literal["clip_vision_model", "siglip_vision_model"]
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A LLaVA-like model: vision tower, projector, text decoder.

    ``feature_layers`` index the tower's hidden states (0: the embeddings, n: after layer n), all
    non-negative. ``image_feature_size`` is the number of ``<image>`` tokens that one image takes.
    """

    architecture: str
    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    feature_layers: tuple[int, ...]
    drop_class_token: bool
    projector_act: str
    projector_bias: bool
    image_feature_size: int
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    dtype: Literal["float32", "bfloat16", "float16"]

    @property
    def image_input_shape(self) -> tuple[int, int, int, int]:
        return (1, 3, self.vision.image_size, self.vision.image_size)
