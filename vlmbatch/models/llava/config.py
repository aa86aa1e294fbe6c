"""The configuration of a LLaVA checkpoint. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmbatch.models.config import (
    ModelConfig,
    parse_dtype,
    parse_eos_token_ids,
    parse_image_token_id,
    refuse_quantized,
)
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.llava.vision_config import VisionConfig, parse_vision_config
from vlmbatch.models.text_config import parse_text_config

_ARCHITECTURE = "LlavaForConditionalGeneration"

_DEFAULT_VISION = {  # the tower of a config without a vision_config
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaConfig(ModelConfig):
    """Vision tower, projector, text decoder.

    ``feature_layers`` index the tower's hidden states (0: the embeddings, n: after layer n), all
    non-negative.
    """

    vision: VisionConfig
    feature_layers: tuple[int, ...]
    drop_class_token: bool
    projector_act: str
    projector_bias: bool

    @property
    def image_feature_size(self) -> int:
        """Tokens that every image takes."""
        vision = self.vision
        return vision.num_patches + vision.has_class_token - self.drop_class_token

    @property
    def feature_size(self) -> int:
        """Numbers in one feature of the tower's: as many for each of ``feature_layers``."""
        return self.vision.hidden_size * len(self.feature_layers)

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Of an image's features as the tower gives them: (image_feature_size, feature_size)."""
        return self.image_feature_size, self.feature_size

    @property
    def image_input_shape(self) -> tuple[int, int, int, int]:
        return (1, 3, self.vision.image_size, self.vision.image_size)


def parse_config(top: JsonFields, folder: Path) -> LlavaConfig:
    """See ``Family.parse_config``."""
    architectures = top.values.get("architectures") or [_ARCHITECTURE]
    if not isinstance(architectures, list) or _ARCHITECTURE not in architectures:
        raise top.error(
            "architectures", f"[{_ARCHITECTURE!r}]; such checkpoints are published as llava-hf/..."
        )
    text_fields = top.section("text_config") or JsonFields({}, f"{top.where}: text_config")
    vision_fields = top.section("vision_config") or JsonFields(
        _DEFAULT_VISION, f"{top.where}: vision_config"
    )
    refuse_quantized(top, text_fields, vision_fields)
    text = parse_text_config(text_fields)
    vision = parse_vision_config(vision_fields)
    strategy = top.choice("vision_feature_select_strategy", "default", ("default", "full"))
    return LlavaConfig(
        model_type="llava",
        text=text,
        vision=vision,
        image_token_id=parse_image_token_id(top, 32_000, text.vocab_size),
        feature_layers=_feature_layers(top, vision.num_layers),
        drop_class_token=strategy == "default",  # drops the first token even where it is a patch
        projector_act=top.activation("projector_hidden_act", "gelu"),
        projector_bias=top.boolean("multimodal_projector_bias", True),
        tie_word_embeddings=top.boolean("tie_word_embeddings", False)
        or text_fields.boolean("tie_word_embeddings", False),
        eos_token_ids=parse_eos_token_ids(folder, top, text_fields, text.model_type),
        dtype=parse_dtype(top, text_fields),
    )


def _feature_layers(top: JsonFields, num_layers: int) -> tuple[int, ...]:
    name = "vision_feature_layer"
    layers = top.integers(name, (-2,))
    num_hidden_states = num_layers + 1
    if not layers or any(not -num_hidden_states <= layer <= num_layers for layer in layers):
        raise top.error(name, f"layers from {-num_hidden_states} to {num_layers}")
    return tuple(layer % num_hidden_states for layer in layers)
