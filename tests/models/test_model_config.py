from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlavaConfig

from vlmbatch.config import ImageArguments
from vlmbatch.errors import CheckpointError, ConfigError
from vlmbatch.models.config import check_image_arguments
from vlmbatch.models.family import load_model_config
from vlmbatch.models.llava.config import LlavaConfig as OurConfig

LLAVA_7B: dict[str, Any] = {  # as published: most fields left out
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


def config_with(text: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    return {**LLAVA_7B, "text_config": {**LLAVA_7B["text_config"], **(text or {})}, **top}


def load(folder: Path, config: object, generation: object = None) -> OurConfig:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    loaded = load_model_config(folder)
    assert isinstance(loaded, OurConfig)
    return loaded


PUBLISHED = {
    "llava-1.5-7b": LLAVA_7B,
    "no sections": {"model_type": "llava", "image_token_index": 31999},
    "empty sections": {
        "model_type": "llava",
        "text_config": {},
        "vision_config": {},
        "image_token_id": 5,
    },
    "llava-1.5-13b": config_with(
        {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40}
        | {"num_hidden_layers": 40, "num_key_value_heads": 40},
        image_seq_length=576,
    ),
    "mistral": config_with(
        {"model_type": "mistral", "intermediate_size": 14336, "rope_theta": 1e6}
        | {"sliding_window": None, "num_key_value_heads": 8}
    ),
    "mistral, defaults": config_with({"model_type": "mistral"}),
    "null heads": config_with({"num_key_value_heads": None, "head_dim": None}),
    "qwen2, null heads": config_with(
        {"model_type": "qwen2", "num_attention_heads": 64, "num_key_value_heads": None}
    ),
    "qwen2": config_with(
        {"model_type": "qwen2", "hidden_size": 896, "num_attention_heads": 14}
        | {"num_key_value_heads": 2, "vocab_size": 152000, "tie_word_embeddings": True}
        | {"num_hidden_layers": 24, "max_window_layers": 24, "sliding_window": 32768}
        | {"use_sliding_window": False, "rope_theta": 1000000.0},
        image_token_index=151646,
    ),
    "qwen2, sliding": config_with(
        {"model_type": "qwen2", "use_sliding_window": True, "num_hidden_layers": 30}
    ),
    "qwen2, layer types": config_with(
        {"model_type": "qwen2", "use_sliding_window": True, "num_hidden_layers": 3}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    ),
    "qwen3": config_with({"model_type": "qwen3", "hidden_size": 1000, "attention_bias": True}),
    "siglip": config_with(
        vision_config={"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14}
        | {"hidden_size": 1152, "num_attention_heads": 16, "num_hidden_layers": 27},
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    ),
    "siglip, defaults": config_with(vision_config={"model_type": "siglip_vision_model"}),
    "clip, defaults": config_with(vision_config={"model_type": "clip_vision_model"}),
    "clip, full": config_with(vision_feature_select_strategy="full"),
    "several layers": config_with(vision_feature_layer=[-2, 5, 24, -25]),
    "rope linear": config_with({"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "rope llama3": config_with(
        {"rope_theta": 500000.0, "head_dim": 64, "max_position_embeddings": 131072}
        | {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        }
    ),
    "rope parameters": config_with(
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        dtype="bfloat16",
    ),
    "rope parameters, llama3 without original": config_with(
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "rope_theta": 5e5,
            }
        }
    ),
    "biases": config_with(
        {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_pytorch_tanh"},
        multimodal_projector_bias=False,
        projector_hidden_act="gelu_new",
    ),
}


def reference_feature_size(config: LlavaConfig) -> int:
    """What LlavaProcessor counts and the model's feature selection leaves."""
    vision = config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    tokens += vision.model_type == "clip_vision_model"
    return int(tokens - (config.vision_feature_select_strategy == "default"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    ours = load(tmp_path, PUBLISHED[name])
    theirs = LlavaConfig.from_pretrained(tmp_path)
    text, vision = theirs.text_config, theirs.vision_config

    assert ours.image_token_id == theirs.image_token_index
    assert ours.image_feature_size == reference_feature_size(theirs)
    layers = theirs.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else layers
    states = list(range(vision.num_hidden_layers + 1))
    assert list(ours.feature_layers) == [states[layer] for layer in layers]
    assert ours.projector_bias == theirs.multimodal_projector_bias
    assert ours.projector_act == theirs.projector_hidden_act.replace("_new", "_pytorch_tanh")
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.dtype == str(theirs.dtype or "float32").removeprefix("torch.")

    for field, theirs_name in {
        "model_type": "model_type",
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
        assert getattr(ours.text, field) == getattr(text, theirs_name), field
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert ours.text.head_dim == head_dim
    qwen2 = text.model_type == "qwen2"
    assert ours.text.head_norms == (text.model_type == "qwen3")
    assert ours.text.attention_bias == (qwen2 or getattr(text, "attention_bias", False))
    assert ours.text.output_bias == getattr(text, "attention_bias", False)
    assert ours.text.mlp_bias == getattr(text, "mlp_bias", False)
    qwen = text.model_type in ("qwen2", "qwen3")
    kinds = text.layer_types if qwen else ["sliding_attention"] * text.num_hidden_layers
    window = getattr(text, "sliding_window", None)
    assert list(ours.text.sliding_windows) == [
        window if kind == "sliding_attention" else None for kind in kinds
    ]
    rope = text.rope_parameters
    assert ours.text.rope.theta == rope["rope_theta"]
    assert ours.text.rope.kind == rope["rope_type"]
    for field in ("factor", "low_freq_factor", "high_freq_factor"):
        if field in rope:
            assert getattr(ours.text.rope, field) == rope[field]
    if rope["rope_type"] == "llama3":
        original = rope["original_max_position_embeddings"]
        assert ours.text.rope.original_max_position_embeddings == original

    for field, theirs_name in {
        "model_type": "model_type",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "image_size": "image_size",
        "patch_size": "patch_size",
        "hidden_act": "hidden_act",
        "layer_norm_eps": "layer_norm_eps",
    }.items():
        assert getattr(ours.vision, field) == getattr(vision, theirs_name), field


def test_llava_7b_in_numbers(tmp_path: Path) -> None:
    config = load(tmp_path, LLAVA_7B)
    assert config.image_feature_size == 576
    assert config.image_input_shape == (1, 3, 336, 336)
    assert config.feature_layers == (23,)
    assert config.drop_class_token
    assert config.dtype == "float16"


@pytest.mark.parametrize(
    ("text", "top", "generation", "expected"),
    [
        ({}, {}, {"eos_token_id": [7, 8]}, (7, 8)),
        ({"eos_token_id": 5}, {}, {"eos_token_id": 9}, (9,)),
        ({"eos_token_id": 5}, {}, {"bos_token_id": 1}, (5,)),
        ({"eos_token_id": 5}, {"eos_token_id": 6}, None, (6,)),
        ({}, {}, None, (2,)),
        ({"model_type": "qwen2"}, {}, None, ()),
        ({"eos_token_id": None}, {}, None, ()),
    ],
)
def test_eos_token_ids(
    tmp_path: Path, text: Any, top: Any, generation: Any, expected: tuple[int, ...]
) -> None:
    assert load(tmp_path, config_with(text, **top), generation).eos_token_ids == expected


VISION = LLAVA_7B["vision_config"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (config_with(model_type="vipllava"), "model_type is 'vipllava'"),
        (config_with(model_type=None), "model_type is None"),
        (
            config_with(model_type="my_vlm", auto_map={"AutoModel": "modeling.MyVLM"}),
            "auto_map is {'AutoModel': 'modeling.MyVLM'}",
        ),
        (config_with(architectures=["LlavaLlamaForCausalLM"]), "LlavaLlamaForCausalLM"),
        (config_with({"model_type": "gemma"}), "text_config: model_type is 'gemma'"),
        (config_with(vision_config={"model_type": "pixtral"}), "model_type is 'pixtral'"),
        (config_with({"rope_scaling": {"type": "yarn", "factor": 2}}), "type is 'yarn'"),
        (config_with({"rope_scaling": {"type": "linear"}}), "factor is None"),
        (config_with({"rope_scaling": {"rope_type": "llama3", "factor": 2}}), "low_freq_factor"),
        (config_with({"partial_rotary_factor": 0.5}), "partial_rotary_factor is 0.5"),
        (config_with(quantization_config={"quant_method": "awq"}), "'awq'"),
        (config_with({"quantization_config": {"quant_method": "gptq"}}), "'gptq'"),
        (config_with({"hidden_act": "xielu"}), "hidden_act is 'xielu'"),
        (config_with(projector_hidden_act="mish"), "projector_hidden_act is 'mish'"),
        (config_with(vision_feature_layer=-26), "vision_feature_layer is -26"),
        (config_with(vision_feature_layer=[]), "vision_feature_layer is []"),
        (config_with(vision_feature_select_strategy="cls"), "'cls'"),
        (config_with({"vocab_size": 32000}), "image_token_index is 32000"),
        (config_with({"hidden_size": "4096"}), "hidden_size is '4096'"),
        (config_with({"hidden_size": 0}), "hidden_size is 0"),
        (config_with({"hidden_size": 4100}), "hidden_size is 4100"),
        (config_with({"num_key_value_heads": 5}), "num_key_value_heads is 5"),
        (config_with({"num_hidden_layers": True}), "num_hidden_layers is True"),
        (config_with({"rms_norm_eps": "tiny"}), "rms_norm_eps is 'tiny'"),
        (config_with(text_config=[]), "text_config is []"),
        (config_with(torch_dtype="float8_e4m3fn"), "torch_dtype is 'float8_e4m3fn'"),
        (config_with(vision_config={**VISION, "num_channels": 1}), "num_channels is 1"),
        (config_with(vision_config={**VISION, "image_size": [336, 224]}), "[336, 224]"),
        (config_with(vision_config={**VISION, "image_size": 8}), "image_size is 8"),
        (
            config_with(
                {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["moe"] * 32}
            ),
            "moe",
        ),
        (config_with({"hidden_size": 10**12}), "hidden_size is 1000000000000, expected an"),
        (config_with({"num_hidden_layers": 1025}), "expected an integer of at most 1024"),
        (config_with({"max_position_embeddings": 10**9}), "an integer of at most 2097152"),
        (config_with({"rms_norm_eps": 10**400}), "expected a number above 0"),
        (config_with(vision_config={**VISION, "num_hidden_layers": 10**6}), "at most 1024"),
        (config_with(eos_token_id=[2**31]), "eos_token_id is [2147483648]"),
        ([], "expected a JSON object, found list"),
    ],
)
def test_refusals_name_field_and_value(tmp_path: Path, config: object, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, config)
    assert said in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe{}", b'{"a": 1', b"[" * 100_000])
def test_missing_or_malformed_file(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model_config(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FIELDS = [
    (section, name)
    for section in (None, "text_config", "vision_config")
    for name in (LLAVA_7B[section] if section else LLAVA_7B)
] + [("text_config", name) for name in ("head_dim", "rope_scaling", "rope_parameters")]


@given(st.sampled_from(FIELDS), JSON)
def test_any_value_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, field: tuple[str | None, str], value: Any
) -> None:
    config = json.loads(json.dumps(LLAVA_7B))
    (config[field[0]] if field[0] else config)[field[1]] = value
    folder = tmp_path_factory.getbasetemp()
    try:
        loaded = load(folder, config)
    except CheckpointError as error:
        assert str(folder) in str(error)
    else:
        assert loaded.image_feature_size > 0


def test_image_arguments(tmp_path: Path) -> None:
    config = load(tmp_path, LLAVA_7B)
    check_image_arguments(config, ImageArguments())
    check_image_arguments(
        config,
        ImageArguments(
            image_token_id=32000, image_input_shape=(1, 3, 336, 336), image_feature_size=576
        ),
    )
    for wrong, said in (
        (ImageArguments(image_token_id=5), ("image_token_id", "5", "32000")),
        (
            ImageArguments(image_input_shape=(1, 3, 224, 224)),
            ("image_input_shape", "(1, 3, 224, 224)", "(1, 3, 336, 336)"),
        ),
        (ImageArguments(image_feature_size=577), ("image_feature_size", "577", "576")),
    ):
        with pytest.raises(ConfigError) as caught:
            check_image_arguments(config, wrong)
        assert all(part in str(caught.value) for part in said)
