"""``quantization_config``: what is read, what is refused, and which layers are meant."""

from __future__ import annotations

from typing import Any

import pytest
from fp8_checkpoints import blocked, changed, compressed

from vlmbatch.errors import CheckpointError, ConfigError
from vlmbatch.models.config import ModelConfig, with_quantization
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.quantization import Fp8Config, parse_quantization
from vlmbatch.models.text_config import parse_text_config

DOWN_PROJ = "language_model.layers.1.mlp.down_proj"


def parse(top: Any = None, text: Any = None, vision: Any = None) -> Fp8Config | None:
    sections = [
        JsonFields({} if value is None else {"quantization_config": value}, name)
        for name, value in (("top", top), ("text", text), ("vision", vision))
    ]
    return parse_quantization(*sections)


def test_published_formats() -> None:
    assert parse() is None
    assert parse(compressed(["lm_head"])) == Fp8Config(False, "weight_scale", ("lm_head",))
    assert parse(text=blocked(["a.b"])) == Fp8Config(True, "weight_scale_inv", ("a.b",))
    older = changed(compressed(), "quantization_status", "frozen")
    older["sparsity_config"] = {"format": "dense", "global_sparsity": 0.1}
    assert parse(older) == parse(compressed())
    assert parse(blocked(), blocked()) == Fp8Config(True, "weight_scale_inv")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ("yes", r"top: quantization_config is 'yes', expected an object"),
        ({"quant_method": "awq"}, r"quant_method is 'awq'"),
        (changed(compressed(), "format", "pack-quantized"), r"format is 'pack-quantized'"),
        (changed(compressed(), "quantization_status", "calibration"), r"quantization_status is"),
        (changed(compressed(), "kv_cache_scheme", {"num_bits": 8}), r"kv_cache_scheme is"),
        (changed(compressed(), "sparsity_config", {"format": "2:4"}), r"format is '2:4'"),
        (changed(compressed(), "config_groups", {}), r"config_groups is \{\}"),
        (changed(compressed(), "config_groups.group_0", None), r"config_groups is"),
        (changed(compressed(), "config_groups.second", {}), r"config_groups is"),
        (changed(compressed(), "config_groups.group_0.targets", ["re:.*"]), r"group_0: targets"),
        (changed(compressed(), "config_groups.group_0.weights", None), r"weights is None"),
        (
            changed(compressed(), "config_groups.group_0.weights.num_bits", 4),
            r"weights: num_bits is 4, expected 8",
        ),
        (
            changed(compressed(), "config_groups.group_0.weights.strategy", "tensor"),
            r"weights: strategy is 'tensor', expected 'channel'",
        ),
        (changed(compressed(), "config_groups.group_0.weights.type", "int"), r"type is 'int'"),
        (
            changed(compressed(), "config_groups.group_0.weights.symmetric", False),
            r"symmetric is False",
        ),
        (
            changed(compressed(), "config_groups.group_0.input_activations.dynamic", False),
            r"input_activations: dynamic is False, expected True",
        ),
        (
            changed(compressed(), "config_groups.group_0.output_activations", {"num_bits": 8}),
            r"output_activations is",
        ),
        (changed(blocked(), "weight_block_size", [64, 64]), r"weight_block_size is \[64, 64\]"),
        (changed(blocked(), "weight_block_size", None), r"weight_block_size is None"),
        (changed(blocked(), "activation_scheme", "static"), r"activation_scheme is 'static'"),
        (changed(blocked(), "fmt", "e5m2"), r"fmt is 'e5m2'"),
        (changed(blocked(), "modules_to_not_convert", "lm_head"), r"modules_to_not_convert is"),
        (changed(blocked(), "modules_to_not_convert", [3]), r"modules_to_not_convert is \[3\]"),
        (compressed(["re:("]), r"ignore is 're:\(', expected a regular expression"),
        (compressed([r"re:(\w+)+$"]), r"ignore is 're:\(\\\\w\+\)\+\$', expected a regular"),
        (compressed([f"re:{'.*a' * 5}"]), r"at most 300 characters and 4 repeats"),
        (compressed([f"re:{'a' * 301}"]), r"at most 300 characters"),
        (compressed(["a"] * 10_001), r"ignore has 10001 names, over the limit of 10000"),
    ],
)
def test_anything_else_is_refused_by_name(settings: Any, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        parse(settings)


def test_two_that_differ_and_one_of_the_tower_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"text: quantization_config .* the same as"):
        parse(compressed(), blocked())
    with pytest.raises(CheckpointError, match=r"vision: quantization_config .* vision tower"):
        parse(vision=blocked())


@pytest.mark.parametrize(
    "ignored",
    [
        DOWN_PROJ,
        "model.language_model.layers.1.mlp.down_proj",
        "language_model.model.layers.1.mlp.down_proj",
        "model.layers.1.mlp",
        "down_proj",
        r"re:.*layers\.1\..*",
        r"re:^model\.layers\.1\.mlp\.down_proj$",
    ],
)
def test_ignored_layers_have_the_names_of_any_layout(ignored: str) -> None:
    config = Fp8Config(ignored=("lm_head", ignored))
    assert config.ignores(DOWN_PROJ)
    assert not config.ignores("language_model.layers.11.self_attn.o_proj")
    assert not Fp8Config(ignored=("own_proj", "layers.1.ml")).ignores(DOWN_PROJ)


def test_quantized_weights_are_not_quantized_again() -> None:
    text = parse_text_config(JsonFields({"model_type": "llama"}, "text"))
    config = ModelConfig(
        model_type="llava",
        text=text,
        image_token_id=4,
        tie_word_embeddings=False,
        eos_token_ids=(2,),
        dtype="bfloat16",
    )
    assert with_quantization(config, None) is config
    quantized = with_quantization(config, "fp8")
    assert quantized.quantization == Fp8Config()
    with pytest.raises(ConfigError, match=r"--quantize fp8: .* a scale an output channel"):
        with_quantization(quantized, "fp8")
