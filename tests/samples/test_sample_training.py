from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import packing
import pytest
import torch
import vocabulary
from checkpoint import IMAGE_SIDE, new_model, published_name, save_checkpoint
from packed_model import PackedModel
from packing import AT_MOST, make_packs
from scenes import make_scene
from tokenizers import Tokenizer
from train_tiny_llava import train
from transformers import AutoProcessor, LlavaForConditionalGeneration

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(samples: Path) -> Tokenizer:
    return Tokenizer.from_file(str(samples / "tiny-llava/tokenizer.json"))


def test_packs_do_not_depend_on_the_number_of_workers(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK", 4)
    one, two = (make_packs(range(10), tokenizer, IMAGE_SIDE, workers) for workers in (1, 2))
    assert len(one) == 10
    for name, array in vars(one).items():
        assert np.array_equal(array, vars(two)[name]), name


@pytest.mark.parametrize(
    ("conversation", "system"), [(False, None), (True, vocabulary.SYSTEM_PROMPTS[0])]
)
def test_a_packed_question_trains_as_a_prompt_of_its_own(
    tokenizer: Tokenizer,
    samples: Path,
    monkeypatch: pytest.MonkeyPatch,
    conversation: bool,
    system: str | None,
) -> None:
    monkeypatch.setattr(packing, "JPEG_SHARE", 0)
    monkeypatch.setattr(packing, "CONVERSATION_SHARE", float(conversation))
    torch.manual_seed(0)
    packed = PackedModel(new_model(tokenizer).eval(), tokenizer, CPU)
    batch = packed.to_device(make_packs([11], tokenizer, IMAGE_SIDE, 1))
    processor = AutoProcessor.from_pretrained(samples / "tiny-llava", backend="pil")
    scene = make_scene(11)
    history = ""
    with torch.no_grad():
        logits = packed.logits(batch, packed.heads[0 if system is None else 1])[0]
        for index, question in enumerate(scene.choose_questions(AT_MOST)):
            text = vocabulary.prompt(question.text, system)
            if conversation and index:
                text = f"{history}</s>USER: {question.text} ASSISTANT:"
            history = text = f"{text} {question.answer}"
            inputs = processor(images=scene.image, text=text, return_tensors="pt")
            expected = packed.model(**inputs).logits[0]
            mine = batch["questions"][0] == index
            length = int(mine.sum()) - 1  # the pack has the end of the answer, too
            assert inputs["input_ids"][0, -length:].equal(batch["tokens"][0][mine][:-1].long())
            torch.testing.assert_close(logits[mine][:-1], expected[-length:], rtol=0, atol=1e-5)


def test_training_learns_and_the_checkpoint_loads(tokenizer: Tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    packed = PackedModel(new_model(tokenizer), tokenizer, CPU)
    packs = packed.to_device(make_packs(range(4), tokenizer, IMAGE_SIDE, 1))
    settings = argparse.Namespace(seed=0, steps=8, batch=4, learning_rate=3e-3, log_every=100)
    before = packed.loss(packs, packed.heads[0]).item()
    train(packed, packs, packs, settings)
    assert packed.loss(packs, packed.heads[0]).item() < before - 1
    save_checkpoint(packed.model, tokenizer, tmp_path)
    loaded, report = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    assert loaded.lm_head.weight.equal(packed.model.lm_head.weight)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("model.language_model.norm.weight", "language_model.model.norm.weight"),
        ("model.multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias"),
        ("model.vision_tower.encoder.x", "vision_tower.vision_model.encoder.x"),
        ("model.vision_tower.vision_model.encoder.x", "vision_tower.vision_model.encoder.x"),
    ],
)
def test_published_names(name: str, published: str) -> None:
    assert published_name(name) == published
