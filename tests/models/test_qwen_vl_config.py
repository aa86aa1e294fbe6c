"""The configuration of Qwen-VL checkpoints beside transformers' classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from qwen_vl_checkpoints import KINDS

from vlmbatch.errors import CheckpointError
from vlmbatch.models.family import family_of, load_model_config
from vlmbatch.models.qwen_vl.config import QwenVLConfig
from vlmbatch.models.qwen_vl.presets import CONFIGS
from vlmbatch.types import ImageGrid

CLASSES = {
    "qwen2_vl": transformers.Qwen2VLConfig,
    "qwen2_5_vl": transformers.Qwen2_5_VLConfig,
    "qwen3_vl": transformers.Qwen3VLConfig,
}
SMALL = {"vocab_size": 200, "num_attention_heads": 2, "hidden_size": 256, "num_hidden_layers": 4}
SMALL |= {"num_key_value_heads": 2}
CASES = {
    **CONFIGS,
    "2, defaults": {
        "model_type": "qwen2_vl",
        "vision_config": {"hidden_size": 8192},
    },
    "2.5, defaults": {"model_type": "qwen2_5_vl", "vision_config": {"out_hidden_size": 8192}},
    "3, defaults": {"model_type": "qwen3_vl", "vision_config": {"out_hidden_size": 4096}},
    "2.5, tied and in sections": {
        "model_type": "qwen2_5_vl",
        "image_token_id": 7,
        "text_config": {**SMALL, "tie_word_embeddings": True, "num_key_value_heads": None},
        "vision_config": {"out_hidden_size": 256, "window_size": 56, "model_type": "qwen2_5_vl"},
    },
    "3, other rope": {
        "model_type": "qwen3_vl",
        "image_token_id": 7,
        "text_config": {**SMALL, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        "vision_config": {"out_hidden_size": 256, "deepstack_visual_indexes": [1, 2]},
    },
}


def load(folder: Path, fields: dict[str, Any]) -> QwenVLConfig:
    (folder / "config.json").write_text(json.dumps(fields))
    config = load_model_config(folder)
    assert isinstance(config, QwenVLConfig)
    return config


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    ours = load(tmp_path, CASES[name])
    theirs = CLASSES[ours.model_type].from_pretrained(tmp_path)
    for field in ("image_token_id", "vision_start_token_id", "vision_end_token_id"):
        assert getattr(ours, field) == getattr(theirs, field)
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    of_either = (theirs, theirs.text_config)
    eos = next(filter(None, (getattr(each, "eos_token_id", None) for each in of_either)), None)
    assert ours.eos_token_ids == (() if eos is None else (eos,))
    for field, theirs_name in {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "rms_norm_eps": "rms_norm_eps",
        "max_position_embeddings": "max_position_embeddings",
        "hidden_act": "hidden_act",
    }.items():
        assert getattr(ours.text, field) == getattr(theirs.text_config, theirs_name), field
    rope = theirs.text_config.rope_parameters
    qwen3 = ours.model_type == "qwen3_vl"
    assert (ours.text.rope.kind, ours.text.rope.theta) == (rope["rope_type"], rope["rope_theta"])
    assert ours.text.rope.interleaved == ours.text.head_norms == qwen3
    default = [24, 20, 20] if qwen3 else [16, 24, 24]
    assert list(ours.text.rope.sections) == rope.get("mrope_section", default)
    assert set(ours.text.sliding_windows) == {None}
    names = {
        "num_layers": "depth",
        "num_heads": "num_heads",
        "hidden_act": "hidden_act",
        "patch_size": "patch_size",
        "merge_size": "spatial_merge_size",
        "temporal_patch_size": "temporal_patch_size",
    }
    if ours.model_type == "qwen2_vl":
        names |= {"hidden_size": "embed_dim", "out_hidden_size": "hidden_size"}
    else:
        same = ("hidden_size", "intermediate_size", "out_hidden_size")
        names |= {field: field for field in same}
    for field, theirs_name in names.items():
        assert getattr(ours.vision, field) == getattr(theirs.vision_config, theirs_name), field
    if ours.model_type == "qwen2_5_vl":
        assert ours.vision.window == theirs.vision_config.window_size // 28
        assert list(ours.vision.full_layers) == list(theirs.vision_config.fullatt_block_indexes)
    if qwen3:
        assert ours.vision.position_side**2 == theirs.vision_config.num_position_embeddings
        deep = list(theirs.vision_config.deepstack_visual_indexes)
        assert list(ours.vision.deep_layers) == deep and ours.deep_levels == len(deep)


@pytest.mark.parametrize(
    ("kind", "text", "vision", "said"),
    [
        ("qwen2_5_vl", {}, {"out_hidden_size": 128}, "128 numbers, but the decoder's hidden_size"),
        ("qwen2_vl", {}, {"hidden_size": 128}, "128 numbers, but the decoder's hidden_size is 256"),
        ("qwen2_vl", {}, {"hidden_size": 256, "embed_dim": 40}, "embed_dim is 40, expected a mult"),
        ("qwen3_vl", {}, {"num_position_embeddings": 24}, "num_position_embeddings is 24"),
        ("qwen3_vl", {}, {"deepstack_visual_indexes": [1, 99]}, "layers from 0 to 26"),
        ("qwen3_vl", {}, {"deepstack_visual_indexes": [2, 1]}, "in ascending order"),
        ("qwen3_vl", {"num_hidden_layers": 3}, {}, "3 deepstack_visual_indexes, expected fewer"),
        ("qwen2_5_vl", {}, {"window_size": 27}, "window_size is 27, expected at least the 28"),
        ("qwen2_5_vl", {}, {"in_chans": 4}, "in_chans is 4, expected 3"),
        ("qwen2_5_vl", {"rope_scaling": {"type": "yarn"}}, {}, "type is 'yarn'"),
        ("qwen2_5_vl", {"quantization_config": {"bits": 4}}, {}, "quant_method is None"),
        ("qwen2_5_vl", {"head_dim": 64}, {}, "mrope_section is [16, 24, 24]"),
        ("qwen3_vl", {"rope_scaling": {"mrope_section": []}}, {}, "mrope_section is empty"),
        ("qwen3_vl", {}, {"depth": 10**12}, "depth is 1000000000000, expected an integer of at mo"),
        ("qwen2_5_vl", {}, {"hidden_size": 2**20}, "hidden_size is 1048576, expected an integer"),
        ("qwen2_vl", {}, {"hidden_size": 256, "mlp_ratio": 1e9}, "mlp_ratio is 1000000000.0"),
        ("qwen2_vl", {}, {"rope_parameters": {"rope_theta": 10**400}}, "expected a number"),
    ],
)
def test_refusals(
    kind: str, text: dict[str, Any], vision: dict[str, Any], said: str, tmp_path: Path
) -> None:
    fields = {
        "model_type": kind,
        "image_token_id": 7,
        "text_config": {**SMALL, **text},
        "vision_config": {"out_hidden_size": 256, "hidden_size": 256} | vision,
    }
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, fields)
    assert said in str(caught.value)


def test_sections_that_are_null_are_the_familys(tmp_path: Path) -> None:
    text = {**SMALL, "rope_scaling": {"mrope_section": None}}
    vision = {"out_hidden_size": 256, "hidden_size": 256}
    fields = {"model_type": "qwen3_vl", "image_token_id": 7}
    ours = load(tmp_path, fields | {"text_config": text, "vision_config": vision})
    assert ours.text.rope.sections == (24, 20, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_costs_follow_the_grid(kind: str, tmp_path: Path) -> None:
    name = {"qwen2_vl": "qwen2-vl-7b", "qwen2_5_vl": "qwen2.5-vl-7b", "qwen3_vl": "qwen3-vl-8b"}
    config = load(tmp_path, CONFIGS[name[kind]])
    small, large = (
        family_of(config).image_flops(config, ImageGrid(side, side, side**2, 0)) for side in (8, 16)
    )
    assert large.projector == 4 * small.projector
    assert 4 * small.tower < large.tower < 16 * small.tower
    vision = config.vision
    full = len(vision.full_layers) if kind == "qwen2_5_vl" else vision.num_layers
    # Four windows' attention takes as much as four images': only full attention takes more.
    pairs = (4 * 16**2) ** 2 - 4 * (4 * 8**2) ** 2
    assert large.tower - 4 * small.tower == 4 * full * pairs * vision.hidden_size
