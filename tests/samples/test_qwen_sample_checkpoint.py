from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import qwen_vocabulary as words
import torch
from held_out import ALL_KINDS
from PIL import Image
from qwen_checkpoint import model_config
from qwen_huggingface import HuggingFace
from qwen_samples import CHAT_MANIFEST
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
from words import WORDS

PUBLISHED_PREFIXES = {
    "model.language_model.embed_tokens.",
    "model.language_model.layers.",
    "model.language_model.norm.",
    "model.visual.blocks.",
    "model.visual.deepstack_merger_list.",
    "model.visual.merger.",
    "model.visual.patch_embed.",
    "model.visual.pos_embed.",
}


@pytest.fixture(scope="module")
def folder(samples: Path) -> Path:
    return samples / "tiny-qwen-vl"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_the_folder_is_small_and_states_what_it_reached(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10_000_000
    record = json.loads((folder / "TRAINING.json").read_text())
    held_out = record["held_out"]
    assert set(held_out["questions"]) == set(ALL_KINDS)
    assert sum(held_out["questions"].values()) >= 1000
    assert max(held_out["questions"].values()) - min(held_out["questions"].values()) <= 1
    assert held_out["accuracy_overall"] >= 0.97
    assert {"seed", "steps", "training_pictures", "wall_seconds", "device"} <= record.keys()


def test_the_folder_is_of_the_scripts_that_stand_beside_it(
    folder: Path, tokenizer: Tokenizer
) -> None:
    assert tokenizer.get_vocab() == words.train_tokenizer().get_vocab()
    assert json.loads((folder / "config.json").read_text()) == model_config(tokenizer)
    assert (folder / "chat_template.jinja").read_text() == words.CHAT_TEMPLATE


def test_tensors_have_the_published_names(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"F32"}
    used = {prefix for prefix in PUBLISHED_PREFIXES if any(n.startswith(prefix) for n in names)}
    assert used == PUBLISHED_PREFIXES
    assert all(name.startswith(tuple(PUBLISHED_PREFIXES)) for name in names)


def test_hugging_face_loads_every_tensor_and_answers_the_samples(
    samples: Path, folder: Path
) -> None:
    _, report = Qwen3VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    lines = (samples / CHAT_MANIFEST).read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["answer"] is not None]
    theirs = HuggingFace(folder)
    prompts = [
        theirs.tokenizer.apply_chat_template(
            row["messages"], tokenize=False, add_generation_prompt=True
        )
        for row in rows
    ]
    images = [[Image.open(samples / path).convert("RGB") for path in row["image"]] for row in rows]
    answers = theirs.texts(theirs.answer(prompts, images))
    assert answers == [row["answer"] for row in rows]


def test_transformers_loads_the_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    loaded = AutoTokenizer.from_pretrained(folder)
    text = words.prompt("How many stars are there? Où ça, 42 ☃?", 2)
    assert loaded(text).input_ids == tokenizer.encode(text).ids
    assert loaded.decode(loaded(text).input_ids) == text
    assert (loaded.eos_token, loaded.pad_token) == (words.END_OF_TURN, words.END_OF_TEXT)
    assert len(loaded) == tokenizer.get_vocab_size()


def test_words_of_pages_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert all(len(tokenizer.encode(text).ids) == 1 for text in WORDS)
    assert all(len(tokenizer.encode(f" {text}").ids) == 1 for text in WORDS)


def test_the_chat_template_gives_the_format_of_the_prompts(folder: Path) -> None:
    render: Any = AutoTokenizer.from_pretrained(folder).apply_chat_template
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "How many?"}]
    asked = [{"role": "user", "content": parts}]
    options = {"tokenize": False, "add_generation_prompt": True}
    assert render(asked, **options) == words.prompt("How many?", 2)
    system = {"role": "system", "content": "Be brief."}
    assert render([system, *asked], **options) == words.prompt("How many?", 2, "Be brief.")
    later = [{"role": "assistant", "content": "3"}, {"role": "user", "content": "And stars?"}]
    assert render([*asked, *later], **options) == (
        f"{words.prompt('How many?', 2)}3{words.END_OF_TURN}{words.later_turn('And stars?')}"
    )
