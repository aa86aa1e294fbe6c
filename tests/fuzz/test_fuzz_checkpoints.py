"""Checkpoints of any bytes: refused with a message or loaded, never a traceback."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from fuzzing import MODEL, REFUSED, damaged, damaged_json, examples, run_manifest
from hypothesis import given
from hypothesis import strategies as st
from pixel_scaling import scaling
from safetensors.torch import save_file

from vlmbatch.attention import make_backend
from vlmbatch.models.family import load_model_config
from vlmbatch.models.registry import build_model
from vlmbatch.models.weights import weight_slots

SMALL = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
}
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model's files around a model of a few kilobytes."""
    folder = tmp_path_factory.mktemp("model") / "small"
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors", "TRAINING.json"))
    config = json.loads((folder / "config.json").read_bytes())
    config["text_config"] |= SMALL | {"num_key_value_heads": 1, "head_dim": 4}
    config["vision_config"] |= SMALL
    (folder / "config.json").write_text(json.dumps(config))
    model_config = load_model_config(folder)
    model = build_model(model_config, scaling(), make_backend("torch", "cpu"))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(slot.shape, generator=generator) * 0.02
        for name, slot in weight_slots(model)
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "m.jsonl").write_text('{"prompt": "USER: What number is written? ASSISTANT:"}\n')
    return folder


def run_with(checkpoint: Path, name: str, content: bytes) -> int:
    """The exit status with one file of the checkpoint replaced."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "model")
        shutil.copytree(checkpoint, folder)
        (folder / name).write_bytes(content)
        status, output = run_manifest(folder / "m.jsonl", "--chat", model=folder)
        assert output.exists() == (status != REFUSED)
        return status


def test_the_undamaged_checkpoint_answers(checkpoint: Path) -> None:
    assert run_with(checkpoint, "other.txt", b"") == 0


@examples(15)
@given(st.data())
def test_damaged_weights(checkpoint: Path, data: st.DataObject) -> None:
    original = (checkpoint / "model.safetensors").read_bytes()
    header_bytes = 8 + int.from_bytes(original[:8], "little")
    header, tensors = original[:header_bytes], original[header_bytes:]
    found = data.draw(damaged({"header": header}))
    run_with(checkpoint, "model.safetensors", found + tensors)


@examples(15)
@given(st.data())
def test_damaged_weight_headers(checkpoint: Path, data: st.DataObject) -> None:
    original = (checkpoint / "model.safetensors").read_bytes()
    header_bytes = 8 + int.from_bytes(original[:8], "little")
    header = data.draw(damaged_json(json.loads(original[8:header_bytes])))
    size = len(header).to_bytes(8, "little")
    run_with(checkpoint, "model.safetensors", size + header + original[header_bytes:])


@examples(30)
@given(st.data(), st.sampled_from(JSON_FILES))
def test_odd_values(checkpoint: Path, data: st.DataObject, name: str) -> None:
    run_with(
        checkpoint, name, data.draw(damaged_json(json.loads((checkpoint / name).read_bytes())))
    )


@examples(15)
@given(st.data())
def test_odd_tokenizers(checkpoint: Path, data: st.DataObject) -> None:
    original = json.loads((checkpoint / "tokenizer.json").read_bytes())
    run_with(checkpoint, "tokenizer.json", data.draw(damaged_json(original)))


@examples(20)
@given(st.data(), st.sampled_from((*JSON_FILES, "tokenizer.json", "chat_template.jinja")))
def test_damaged_bytes(checkpoint: Path, data: st.DataObject, name: str) -> None:
    run_with(checkpoint, name, data.draw(damaged({name: (checkpoint / name).read_bytes()})))
