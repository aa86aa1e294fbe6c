from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import vocabulary
from checkpoint import model_config
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from questions import QUESTION_KINDS
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

PUBLISHED_PREFIXES = {
    "language_model.lm_head.",
    "language_model.model.embed_tokens.",
    "language_model.model.layers.",
    "language_model.model.norm.",
    "multi_modal_projector.linear_1.",
    "multi_modal_projector.linear_2.",
    "vision_tower.vision_model.embeddings.",
    "vision_tower.vision_model.encoder.",
    "vision_tower.vision_model.post_layernorm.",
    "vision_tower.vision_model.pre_layrnorm.",
}


@pytest.fixture(scope="module")
def folder(samples: Path) -> Path:
    return samples / "tiny-llava"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder, backend="pil")


def test_the_folder_is_small_and_states_what_it_reached(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10_000_000
    record = json.loads((folder / "TRAINING.json").read_text())
    held_out = record["held_out"]
    assert held_out["scenes"] >= 1000
    for kind in QUESTION_KINDS:
        assert held_out["questions"][kind] >= 150
        assert held_out["accuracy"][kind] >= 0.97
    assert {"seed", "steps", "training_scenes", "wall_seconds", "device"} <= record.keys()


def test_the_folder_is_of_the_scripts_that_stand_beside_it(
    folder: Path, tokenizer: Tokenizer
) -> None:
    assert tokenizer.get_vocab() == vocabulary.train_tokenizer().get_vocab()
    assert json.loads((folder / "config.json").read_text()) == model_config(tokenizer)
    assert (folder / "chat_template.jinja").read_text() == vocabulary.CHAT_TEMPLATE


def test_tensors_have_the_published_names(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"F32"}
    used = {prefix for prefix in PUBLISHED_PREFIXES if any(n.startswith(prefix) for n in names)}
    assert used == PUBLISHED_PREFIXES
    assert all(name.startswith(tuple(PUBLISHED_PREFIXES)) for name in names)


def test_hugging_face_loads_every_tensor_and_answers_the_samples(
    samples: Path, folder: Path, processor: Any
) -> None:
    model, report = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    lines = (samples / "manifest.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["answer"] is not None]
    inputs = processor(
        images=[Image.open(samples / row["image"]) for row in rows],
        text=[row["prompt"] for row in rows],
        padding=True,
        return_tensors="pt",
    )
    output = model.eval().generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    texts = processor.tokenizer.batch_decode(output, skip_special_tokens=True)
    assert [text.strip() for text in texts] == [row["answer"] for row in rows]


def test_transformers_loads_the_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    loaded = AutoTokenizer.from_pretrained(folder)
    text = vocabulary.prompt("How many stars are there? Où ça, 42 ☃?")
    assert loaded(text).input_ids == tokenizer.encode(text).ids
    assert loaded(text).input_ids[0] == loaded.bos_token_id == 1
    assert (loaded.eos_token_id, loaded.pad_token_id) == (2, 3)
    assert loaded.convert_tokens_to_ids("<image>") == 4
    assert len(loaded) == tokenizer.get_vocab_size()


@given(st.text().filter(lambda text: "<" not in text))
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    # Answers begin with a space, which decoding takes off.
    assert tokenizer.decode(tokenizer.encode(text).ids) == text.removeprefix(" ")


def test_the_chat_template_gives_the_format_of_the_prompts(processor: Any) -> None:
    question = {
        "role": "user",
        "content": [{"type": "text", "text": "How many?"}, {"type": "image"}],
    }
    render = processor.apply_chat_template
    assert render([question], add_generation_prompt=True) == vocabulary.prompt("How many?")
    conversation = [
        {"role": "system", "content": "Be brief."},
        question,
        {"role": "assistant", "content": [{"type": "text", "text": "3"}]},
        {"role": "user", "content": "What colour?"},
    ]
    assert render(conversation, add_generation_prompt=True) == (
        "Be brief. USER: <image>\nHow many? ASSISTANT: 3</s>USER: What colour? ASSISTANT:"
    )
