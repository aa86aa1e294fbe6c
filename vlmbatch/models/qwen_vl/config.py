"""The configuration of a Qwen-VL checkpoint. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmbatch.errors import CheckpointError
from vlmbatch.models.config import (
    ModelConfig,
    parse_dtype,
    parse_eos_token_ids,
    parse_image_token_id,
)
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.quantization import parse_quantization
from vlmbatch.models.qwen_vl.vision_config import VisionConfig, parse_vision_config
from vlmbatch.models.text_config import parse_text_config

_QWEN2_TEXT: dict[str, Any] = {
    "vocab_size": 152_064,
    "hidden_size": 8192,
    "intermediate_size": 29_568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_window_layers": 80,
    "rope_theta": 1e6,
    "eos_token_id": 151_645,
}
_QWEN3_TEXT: dict[str, Any] = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 128_000,
    "rope_theta": 5e5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenVLConfig(ModelConfig):
    """Vision tower and text decoder."""

    vision: VisionConfig
    vision_start_token_id: int
    vision_end_token_id: int

    @property
    def feature_size(self) -> int:
        """Numbers in one feature of the tower's: what the decoder is given, all levels."""
        return self.image_embedding_size


def parse_config(top: JsonFields, folder: Path) -> QwenVLConfig:
    """See ``Family.parse_config``."""
    kind = top.choice("model_type", "", ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"))
    # Older files have the decoder's fields beside those of the whole.
    given = top.section("text_config") or JsonFields(top.values, f"{top.where}: text_config")
    vision_fields = top.section("vision_config") or JsonFields({}, f"{top.where}: vision_config")
    text_fields = _text_fields(kind, given)
    text = parse_text_config(text_fields)
    if not text.rope.sections:
        raise CheckpointError(f"{given.where}: mrope_section is empty, expected three sizes")
    vision = parse_vision_config(kind, vision_fields)
    if vision.out_hidden_size != text.hidden_size:
        raise CheckpointError(
            f"{vision_fields.where}: the tower's features have {vision.out_hidden_size} numbers, "
            f"but the decoder's hidden_size is {text.hidden_size}"
        )
    if len(vision.deep_layers) >= text.num_layers:
        raise CheckpointError(
            f"{vision_fields.where}: {len(vision.deep_layers)} deepstack_visual_indexes, "
            f"expected fewer than the {text.num_layers} layers of the decoder"
        )
    return QwenVLConfig(
        model_type=kind,
        text=text,
        vision=vision,
        image_token_id=parse_image_token_id(top, 151_655, text.vocab_size),
        vision_start_token_id=top.integer("vision_start_token_id", 151_652, minimum=0),
        vision_end_token_id=top.integer("vision_end_token_id", 151_653, minimum=0),
        tie_word_embeddings=top.boolean("tie_word_embeddings", False)
        or given.boolean("tie_word_embeddings", False),
        eos_token_ids=parse_eos_token_ids(folder, top, text_fields, text.model_type),
        dtype=parse_dtype(top, given),
        deep_levels=len(vision.deep_layers),
        quantization=parse_quantization(top, given, vision_fields),
    )


def _text_fields(kind: str, given: JsonFields) -> JsonFields:
    """The decoder's fields as those of the text model that it is, with the family's defaults."""
    qwen3 = kind == "qwen3_vl"
    defaults = _QWEN3_TEXT if qwen3 else _QWEN2_TEXT
    # A null means something for heads, windows and the end of answers alone.
    nullable = ("num_key_value_heads", "sliding_window", "eos_token_id")
    values = defaults | {
        name: value for name, value in given.values.items() if value is not None or name in nullable
    }
    name = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = given.section(name)
    sections = [24, 20, 20] if qwen3 else [16, 24, 24]
    values[name] = {
        "mrope_section": sections,
        **({} if rope is None else rope.given),
        "mrope_interleaved": qwen3,  # whatever the file says, as in transformers
    }
    return JsonFields(values | {"model_type": "qwen3" if qwen3 else "qwen2"}, given.where)
