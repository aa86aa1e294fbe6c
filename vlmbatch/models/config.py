"""A checkpoint's ``config.json``, normalised once into frozen dataclasses. No torch.

Published files leave most fields out: a missing one has the default of the transformers
configuration class of its ``model_type``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from vlmbatch.config import ImageArguments
from vlmbatch.errors import ConfigError
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.text_config import TEXT_DEFAULTS, RopeConfig, TextConfig, parse_text_config
from vlmbatch.models.vision_config import VisionConfig, parse_vision_config

__all__ = [
    "ModelConfig",
    "RopeConfig",
    "TextConfig",
    "VisionConfig",
    "check_image_arguments",
    "load_model_config",
]

WeightDType = Literal["float32", "bfloat16", "float16"]
ARCHITECTURES = {"llava": "LlavaForConditionalGeneration"}  # by model_type

_LLAVA_VISION = {  # the tower of a LLaVA config without a vision_config
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


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
    dtype: WeightDType

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


def load_model_config(folder: Path) -> ModelConfig:
    """Read ``config.json`` (and ``generation_config.json``) of a checkpoint folder.

    Raises:
        CheckpointError: a file is missing or malformed, or asks for something unsupported; the
            message names the field and its value.
    """
    top = JsonFields.load(folder / "config.json")
    architecture = _architecture(top)
    text_fields = top.section("text_config") or JsonFields({}, f"{top.where}: text_config")
    vision_fields = top.section("vision_config") or JsonFields(
        _LLAVA_VISION, f"{top.where}: vision_config"
    )
    for fields in (top, text_fields, vision_fields):
        if fields.values.get("quantization_config"):
            raise fields.error("quantization_config", "none: quantized weights are unsupported")
    text = parse_text_config(text_fields)
    vision = parse_vision_config(vision_fields)

    strategy = top.choice("vision_feature_select_strategy", "default", ("default", "full"))
    drop_class_token = strategy == "default"  # drops the first token even where it is a patch
    num_class_tokens = int(vision.model_type == "clip_vision_model")
    id_name = "image_token_index" if "image_token_index" in top else "image_token_id"
    image_token_id = top.integer(id_name, 32_000, minimum=0)
    if image_token_id >= text.vocab_size:
        raise top.error(id_name, f"an id below the vocabulary size {text.vocab_size}")
    return ModelConfig(
        architecture=architecture,
        text=text,
        vision=vision,
        image_token_id=image_token_id,
        feature_layers=_feature_layers(top, vision.num_layers),
        drop_class_token=drop_class_token,
        projector_act=top.activation("projector_hidden_act", "gelu"),
        projector_bias=top.boolean("multimodal_projector_bias", True),
        image_feature_size=vision.num_patches + num_class_tokens - drop_class_token,
        tie_word_embeddings=top.boolean("tie_word_embeddings", False)
        or text_fields.boolean("tie_word_embeddings", False),
        eos_token_ids=_eos_token_ids(folder, top, text_fields, text.model_type),
        dtype=_dtype(top, text_fields),
    )


def check_image_arguments(config: ModelConfig, arguments: ImageArguments) -> None:
    """Refuse image arguments that contradict the model.

    Raises:
        ConfigError: with the given value and the model's.
    """
    for name in ("image_token_id", "image_input_shape", "image_feature_size"):
        given, actual = getattr(arguments, name), getattr(config, name)
        if given is not None and given != actual:
            raise ConfigError(
                f"{name} is given as {given}, but the model's is {actual}; "
                "leave it out to take the model's"
            )


def _architecture(top: JsonFields) -> str:
    model_type = top.string("model_type", None)
    if model_type not in ARCHITECTURES:
        if "auto_map" in top:
            raise top.error("auto_map", "none: a checkpoint's own Python code is never run")
        raise top.error("model_type", f"one of: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[model_type]
    architectures = top.values.get("architectures") or [architecture]
    if not isinstance(architectures, list) or architecture not in architectures:
        raise top.error(
            "architectures", f"[{architecture!r}]; such checkpoints are published as llava-hf/..."
        )
    return architecture


def _feature_layers(top: JsonFields, num_layers: int) -> tuple[int, ...]:
    name = "vision_feature_layer"
    layers = top.integers(name, (-2,))
    num_hidden_states = num_layers + 1
    if not layers or any(not -num_hidden_states <= layer <= num_layers for layer in layers):
        raise top.error(name, f"layers from {-num_hidden_states} to {num_layers}")
    return tuple(layer % num_hidden_states for layer in layers)


def _eos_token_ids(
    folder: Path, top: JsonFields, text: JsonFields, model_type: str
) -> tuple[int, ...]:
    name = "eos_token_id"
    path = folder / "generation_config.json"
    generation = [JsonFields.load(path)] if path.exists() else []
    for fields in (*generation, top, text):
        if name in fields:
            return fields.integers(name, ())
    return () if name in text.values else TEXT_DEFAULTS[model_type][name]


def _dtype(top: JsonFields, text: JsonFields) -> WeightDType:
    for fields in (top, text):
        for name in ("dtype", "torch_dtype"):
            if name in fields:
                return cast(WeightDType, fields.choice(name, "", get_args(WeightDType)))
    return "float32"
