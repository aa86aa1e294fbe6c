"""The configuration of a LLaVA checkpoint. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmbatch.models.config import (
    ModelConfig,
    parse_dtype,
    parse_eos_token_ids,
    parse_image_token_id,
)
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.llava.vision_config import VisionConfig, parse_vision_config
from vlmbatch.models.quantization import parse_quantization
from vlmbatch.models.text_config import parse_text_config

_DEFAULT_VISION = {  # the tower of a config without a vision_config
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerConfig(ModelConfig):
    """Vision tower, projector, text decoder: what LLaVA models of all kinds consist of.

    ``feature_layers`` index the tower's hidden states (0: the embeddings, n: after layer n), all
    non-negative.
    """

    vision: VisionConfig
    feature_layers: tuple[int, ...]
    drop_class_token: bool
    projector_act: str
    projector_bias: bool

    @property
    def tower_tokens(self) -> int:
        """Features that the tower gives of what fills it."""
        vision = self.vision
        return vision.num_patches + vision.has_class_token - self.drop_class_token

    @property
    def tower_feature_size(self) -> int:
        """Numbers in one feature of the tower's: as many for each of ``feature_layers``."""
        return self.vision.hidden_size * len(self.feature_layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaConfig(TowerConfig):
    """A model whose images are each what fills the tower once."""

    @property
    def image_feature_size(self) -> int:
        """Tokens that every image takes."""
        return self.tower_tokens

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Of an image's features as the tower gives them: (image_feature_size, C)."""
        return self.tower_tokens, self.tower_feature_size

    @property
    def image_input_shape(self) -> tuple[int, int, int, int]:
        return (1, 3, self.vision.image_size, self.vision.image_size)


def parse_config(top: JsonFields, folder: Path) -> LlavaConfig:
    """See ``Family.parse_config``."""
    check_architecture(top, "LlavaForConditionalGeneration")
    return LlavaConfig(**parse_tower_config(top, folder))


def check_architecture(top: JsonFields, expected: str) -> None:
    """Refuse other layouts of the same ``model_type``.

    Raises:
        CheckpointError: with what is published in the layout that is read.
    """
    architectures = top.values.get("architectures") or [expected]
    if not isinstance(architectures, list) or expected not in architectures:
        raise top.error(
            "architectures", f"[{expected!r}]; such checkpoints are published as llava-hf/..."
        )


def parse_tower_config(
    top: JsonFields,
    folder: Path,
    *,
    text_type: str = "llama",
    vision_defaults: Mapping[str, Any] = _DEFAULT_VISION,
    image_token_id: int = 32_000,
    feature_layer: int = -2,
    strategy: str = "default",
) -> dict[str, Any]:
    """The fields of a ``TowerConfig``; arguments are what a config leaves out.

    Raises:
        CheckpointError: a field is malformed or asks for something unsupported.
    """
    text_fields = _section(top, "text_config", {}, text_type)
    vision_type = vision_defaults.get("model_type", "clip_vision_model")
    vision_fields = _section(top, "vision_config", vision_defaults, vision_type)
    text = parse_text_config(text_fields)
    vision = parse_vision_config(vision_fields)
    strategy = top.choice("vision_feature_select_strategy", strategy, ("default", "full"))
    return {
        "model_type": top.string("model_type", "llava"),
        "text": text,
        "vision": vision,
        "image_token_id": parse_image_token_id(top, image_token_id, text.vocab_size),
        "feature_layers": _feature_layers(top, vision.num_layers, feature_layer),
        "drop_class_token": strategy == "default",  # drops the first token even where it is a patch
        "projector_act": top.activation("projector_hidden_act", "gelu"),
        "projector_bias": top.boolean("multimodal_projector_bias", True),
        "tie_word_embeddings": top.boolean("tie_word_embeddings", False)
        or text_fields.boolean("tie_word_embeddings", False),
        "eos_token_ids": parse_eos_token_ids(folder, top, text_fields, text.model_type),
        "dtype": parse_dtype(top, text_fields),
        "quantization": parse_quantization(top, text_fields, vision_fields),
    }


def _section(top: JsonFields, name: str, missing: Mapping[str, Any], model_type: str) -> JsonFields:
    """The object under ``name``, or ``missing``; where it has no ``model_type``, with this one."""
    given = top.section(name)
    values = missing if given is None else given.values
    typed = {} if values.get("model_type") is not None else {"model_type": model_type}
    return JsonFields({**values, **typed}, f"{top.where}: {name}")


def _feature_layers(top: JsonFields, num_layers: int, default: int) -> tuple[int, ...]:
    name = "vision_feature_layer"
    layers = top.integers(name, (default,))
    num_hidden_states = num_layers + 1
    if not layers or any(not -num_hidden_states <= layer <= num_layers for layer in layers):
        raise top.error(name, f"layers from {-num_hidden_states} to {num_layers}")
    return tuple(layer % num_hidden_states for layer in layers)
