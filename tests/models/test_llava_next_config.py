"""The configuration of LLaVA-NeXT and LLaVA-OneVision checkpoints beside transformers' classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from vlmbatch.errors import CheckpointError
from vlmbatch.models.family import family_of, load_model_config
from vlmbatch.models.llava_next.config import LlavaNextConfig
from vlmbatch.models.llava_next.image_processor import LlavaNextImageProcessor
from vlmbatch.models.llava_next.presets import CONFIGS

CLASSES = {
    "llava_next": transformers.LlavaNextConfig,
    "llava_onevision": transformers.LlavaOnevisionConfig,
}
SMALL = {"vocab_size": 200, "num_attention_heads": 2, "hidden_size": 64, "num_hidden_layers": 2}
SMALL |= {"num_key_value_heads": 2}
CASES = {
    **CONFIGS,
    "next, defaults": {"model_type": "llava_next", "text_config": {"vocab_size": 32_001}},
    "onevision, defaults": {"model_type": "llava_onevision"},
    "onevision, tied, fewer tiles": {
        "model_type": "llava_onevision",
        "image_token_index": 7,
        "text_config": {**SMALL, "tie_word_embeddings": True},
        "vision_config": {"image_size": 224, "patch_size": 16, "num_hidden_layers": 4},
        "vision_feature_layer": [-1, 2],
        "vision_aspect_ratio": "anyres_max_4",
        "image_grid_pinpoints": [[224, 448], [448, 224]],
    },
    "next, a SigLIP tower": {
        "model_type": "llava_next",
        "image_token_index": 7,
        "text_config": {**SMALL, "model_type": "qwen2"},
        "vision_config": {"model_type": "siglip_vision_model", "image_size": 336},
        "vision_feature_select_strategy": "full",
    },
}


def load(folder: Path, fields: dict[str, Any]) -> LlavaNextConfig:
    (folder / "config.json").write_text(json.dumps(fields))
    config = load_model_config(folder)
    assert isinstance(config, LlavaNextConfig)
    return config


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    ours = load(tmp_path, CASES[name])
    theirs = CLASSES[ours.model_type].from_pretrained(tmp_path)
    assert ours.image_token_id == theirs.image_token_id
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.projector_act == theirs.projector_hidden_act
    assert ours.text.model_type == theirs.text_config.model_type
    assert [list(size) for size in ours.pinpoints] == theirs.image_grid_pinpoints
    layers = theirs.vision_feature_layer
    layers = layers if isinstance(layers, list) else [layers]
    assert list(ours.feature_layers) == [
        layer % (theirs.vision_config.num_hidden_layers + 1) for layer in layers
    ]
    assert ours.drop_class_token == (theirs.vision_feature_select_strategy == "default")
    if ours.model_type == "llava_onevision":
        assert theirs.vision_aspect_ratio == f"anyres_max_{ours.max_tiles}"
    for field, theirs_name in {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "max_position_embeddings": "max_position_embeddings",
    }.items():
        assert getattr(ours.text, field) == getattr(theirs.text_config, theirs_name), field
    for field, theirs_name in {
        "model_type": "model_type",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "image_size": "image_size",
        "patch_size": "patch_size",
        "hidden_act": "hidden_act",
    }.items():
        assert getattr(ours.vision, field) == getattr(theirs.vision_config, theirs_name), field


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("llava_next", {"architectures": ["LlavaForCausal"]}, "['LlavaNextForConditionalGenera"),
        ("llava_next", {"vision_feature_select_strategy": "full"}, "expected 'default', as for a"),
        ("llava_onevision", {"vision_feature_select_strategy": "default"}, "expected 'full', as"),
        ("llava_onevision", {"vision_aspect_ratio": "anyres"}, "vision_aspect_ratio is 'anyres'"),
        ("llava_onevision", {"vision_aspect_ratio": "anyres_max_0"}, "number of tiles above 0"),
        ("llava_onevision", {"image_grid_pinpoints": [[384, 400]]}, "384 pixels, not [384, 400]"),
        ("llava_onevision", {"image_grid_pinpoints": {"a": 1}}, "a list of 1 to 256 sizes"),
        ("llava_onevision", {"image_grid_pinpoints": [[384, 0]]}, "384 pixels, not [384, 0]"),
        ("llava_next", {"vision_feature_layer": 99}, "vision_feature_layer is 99, expected layer"),
        ("llava_next", {"quantization_config": {"bits": 4}}, "quant_method is None"),
        ("llava_next", {"text_config": {"model_type": "granite"}}, "model_type is 'granite'"),
        ("llava_next", {"image_token_index": 200}, "image_token_index is 200, expected an id be"),
    ],
)
def test_refusals(kind: str, fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    base = {"model_type": kind, "image_token_index": 7, "text_config": SMALL}
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, base | fields)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_costs_follow_the_tiles(name: str, tmp_path: Path) -> None:
    config = load(tmp_path, CONFIGS[name])
    family, side = family_of(config), config.vision.image_size
    fields = family.processor_config(config)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    images = LlavaNextImageProcessor.load(tmp_path, config)
    one = family.image_flops(config, images.grid(side, 2 * side))
    two = family.image_flops(config, images.grid(2 * side, 2 * side))
    assert (3 * two.tower, 3 * two.projector) == (5 * one.tower, 5 * one.projector)
