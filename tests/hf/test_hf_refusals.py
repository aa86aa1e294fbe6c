"""Checkpoints and options that cannot be used with transformers: refused before weights are read,
by name."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hf_checkpoints import KINDS
from qwen_vl_checkpoints import make_checkpoint
from safetensors.torch import load_file, save_file

from vlmbatch.config import (
    EngineConfig,
    ImageArguments,
    ImageResolution,
    ManifestConfig,
    SessionConfig,
)
from vlmbatch.errors import CheckpointError, ConfigError
from vlmbatch.hf.checkpoint import HfConfig, context_length
from vlmbatch.jobs.features import write_features
from vlmbatch.session.load import load_with_transformers
from vlmbatch.session.open import open_model
from vlmbatch.stats import RunStats

SAMPLE = Path(__file__).parents[2] / "samples/tiny-llava"


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3")
    KINDS["gemma3"].make(folder)
    return folder


@pytest.fixture
def copy(gemma3: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gemma3, tmp_path / "model"))


def config(model: Path, **engine: Any) -> SessionConfig:
    return SessionConfig(str(model), engine=EngineConfig(**engine))


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_within(path: Path, section: str, **values: Any) -> None:
    edit(path, **{section: json.loads(path.read_text())[section] | values})


def test_auto_takes_our_family_where_there_is_one(
    gemma3: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vlmbatch"):
        assert not isinstance(open_model(config(SAMPLE)).model, HfConfig)
        assert caplog.messages == []
        assert isinstance(open_model(config(gemma3)).model, HfConfig)
        assert len(caplog.messages) == 1
        assert "no family of our own for model_type gemma3" in caplog.messages[0]
    assert isinstance(open_model(config(SAMPLE, engine="transformers")).model, HfConfig)
    with pytest.raises(CheckpointError, match="model_type is 'gemma3', expected one of: llava"):
        open_model(config(gemma3, engine="vlmbatch"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_input_type": "image_features"}, "--image-input-type image_features cannot be"),
        ({"image_token_id": 9}, "--image-token-id 9 cannot"),
        ({"image_feature_size": 9}, "--image-feature-size 9 cannot"),
        ({"image_input_shape": (1, 3, 9, 9)}, "--image-input-shape"),
        ({"strict_image_tokens": True}, "--strict-image-tokens cannot"),
        ({"image_processor": "a/b"}, "--image-processor a/b cannot"),
        ({"image_processor_revision": "v2"}, "--image-processor-revision v2 cannot"),
    ],
)
@pytest.mark.parametrize("engine", ["auto", "transformers"])
def test_image_options_without_a_meaning(
    gemma3: Path, engine: Any, arguments: dict[str, Any], message: str
) -> None:
    session = replace(config(gemma3, engine=engine), image_arguments=ImageArguments(**arguments))
    why = "--engine transformers" if engine == "transformers" else "no family of our own"
    with pytest.raises(ConfigError, match=f"{message}.*{why}"):
        open_model(session)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_backend": "torch"}, "--attention-backend torch cannot"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8 cannot"),
        ({"max_batched_tokens": 9}, "--max-batched-tokens 9 cannot"),
        ({"kv_cache_tokens": 9}, "--kv-cache-tokens 9 cannot"),
        ({"enable_prefix_caching": False}, "--no-prefix-caching cannot"),
        ({"random_weights": True}, "random weights cannot"),
        ({"max_model_len": 513}, "max_model_len is 513, but must be from 2 to the model's 512"),
    ],
)
def test_engine_options_without_a_meaning(
    gemma3: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_model(config(gemma3, **arguments))


def test_nothing_scales_images_up(gemma3: Path) -> None:
    images = ImageArguments(resolution=ImageResolution(min_pixels=9))
    with pytest.raises(ConfigError, match="min_pixels is given as 9"):
        open_model(replace(config(gemma3), image_arguments=images))


def test_a_model_of_no_known_context_needs_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no context length: give --max-model-len"):
        context_length(tmp_path, SimpleNamespace(), None)
    assert context_length(tmp_path, SimpleNamespace(), 99) == 99


def test_another_tokenizer(gemma3: Path) -> None:
    with pytest.raises(ConfigError, match="--tokenizer a/b cannot"):
        open_model(replace(config(gemma3), tokenizer="a/b"))


@pytest.mark.parametrize("model", ["gemma3", "llava"])
def test_features_are_our_families_own(gemma3: Path, tmp_path: Path, model: str) -> None:
    folder, engine = (gemma3, "auto") if model == "gemma3" else (SAMPLE, "transformers")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"prompt": "a", "image": "b.png"}\n')
    with pytest.raises(ConfigError, match=f"families of our own alone.* model_type {model}"):
        write_features(
            config(folder, engine=engine),
            ManifestConfig(str(manifest)),
            tmp_path / "features",
            RunStats(),
            lambda row, error: None,
        )
    assert not (tmp_path / "features").exists()


def _model_type(name: object, **more: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", model_type=name, **more)


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _processor(name: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "processor_config.json", processor_class=name)


REFUSED = {
    "unknown": (_model_type("own_vl"), "config.json: model_type is 'own_vl', expected one that"),
    "text": (_model_type("bert"), "config.json: model_type is 'bert', expected one that transf"),
    "remote": (_model_type("own_vl", auto_map={"AutoModel": "x.Y"}), "Python code is never run"),
    "encoder": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "florence2"}'),
        "florence2 has an encoder for the prompt",
    ),
    "config": (
        lambda folder: edit(folder / "config.json", text_config=5),
        "config.json: transformers .* cannot read it: .*text_config",
    ),
    "layers": (
        lambda folder: edit_within(folder / "config.json", "text_config", num_hidden_layers=10**6),
        "text_config: num_hidden_layers is 1000000, expected an integer of at most 1024",
    ),
    "no-image-token": (
        lambda folder: edit(folder / "config.json", image_token_index=9999),
        "the tokenizer has 262 tokens, none of them the model's image_token_id 9999",
    ),
    "image-size": (
        lambda folder: edit_within(
            folder / "processor_config.json", "image_processor", size={"height": 9, "width": 10**6}
        ),
        "image_processor: size: width is 1000000, expected an integer of at most 4096",
    ),
    "image-tokens": (
        lambda folder: edit(folder / "processor_config.json", image_seq_length=2**24),
        "image_seq_length is 16777216, expected an integer of at most 65536",
    ),
    "no-processor": (
        _remove("processor_config.json"),
        "the checkpoint has no preprocessor_config.json or processor_config.json",
    ),
    "tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        "tokenizer.json: not a usable tokenizer",
    ),
    "tokenizer-config": (
        lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
        "tokenizer_config.json: expected a JSON object, found list",
    ),
    "no-tokenizer": (_remove("tokenizer.json"), "(tokenizer|processor)"),
    "torchvision": (
        _processor("InternVLProcessor"),
        "gemma3 needs torchvision, which is not installed: run pip install torchvision",
    ),
    "broken": (
        lambda folder: (folder / "processor_config.json").write_text("{"),
        "processor_config.json|cannot make a processor",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_checkpoints_that_cannot_be_opened(copy: Path, name: str) -> None:
    spoil, message = REFUSED[name]
    spoil(copy)
    with pytest.raises(CheckpointError, match=message):
        open_model(config(copy))


def test_our_families_need_torchvision_there(tmp_path: Path) -> None:
    make_checkpoint("qwen2_vl", tmp_path)
    message = "qwen2_vl needs torchvision, which is not installed: run pip install torchvision"
    with pytest.raises(CheckpointError, match=message):
        open_model(config(tmp_path, engine="transformers"))


def _drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    dropped = next(name for name in tensors if name.endswith("q_proj.weight"))
    del tensors[dropped]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _reshape_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name] = tensors[name][:4].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop_a_tensor, "the weights lack .*q_proj.weight"),
        (_reshape_a_tensor, r"q_proj.weight is of shape \(4, 32\), expected \(32, 32\)"),
        (
            lambda folder: edit_within(folder / "config.json", "text_config", hidden_size=2**24),
            "config.json describes a model of [0-9]+ numbers, but the .safetensors files have",
        ),
        (
            lambda folder: edit_within(folder / "config.json", "text_config", hidden_size=2**62),
            "config.json: transformers .* cannot make the model that it describes",
        ),
        (
            lambda folder: (folder / "generation_config.json").write_text("[]"),
            "generation_config.json: expected a JSON object, found list",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
            "model.safetensors.index.json: not valid JSON",
        ),
        (_pickle, "no .safetensors file; weights in pickles"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\1" * 99_999),
            "cannot load the gemma3 model",
        ),
    ],
)
def test_weights_that_cannot_be_loaded(
    copy: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(copy)
    session = config(copy)
    with pytest.raises(CheckpointError, match=message):
        load_with_transformers(session, open_model(session))
