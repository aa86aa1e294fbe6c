from __future__ import annotations

from pathlib import Path

import pytest
import qwen_packing
import qwen_vocabulary as words
import torch
from pages import make_page
from qwen_checkpoint import new_model, save_checkpoint
from qwen_huggingface import HuggingFace
from qwen_packed_model import QwenPackedModel, to_device
from qwen_packing import KINDS, make_page_chunk, make_scene_chunk
from qwen_vocabulary import train_tokenizer
from scenes import make_scene
from tokenizers import Tokenizer

CPU = torch.device("cpu")
SEEDS = range(40, 42)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(200)


@pytest.mark.parametrize(
    ("conversation", "system"), [(False, None), (True, words.SYSTEM_PROMPTS[0])]
)
def test_a_packed_question_trains_as_a_prompt_of_its_own(
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    conversation: bool,
    system: str | None,
) -> None:
    monkeypatch.setattr("packing.JPEG_SHARE", 0)
    monkeypatch.setattr(qwen_packing, "CONVERSATION_SHARE", float(conversation))
    torch.manual_seed(0)
    model = new_model(tokenizer).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that every tensor matters
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_checkpoint(model, tokenizer, tmp_path)
    theirs = HuggingFace(tmp_path)
    packed = QwenPackedModel(model, tokenizer, CPU)
    chunks = [
        make_scene_chunk(SEEDS, tokenizer),
        make_page_chunk(SEEDS, tokenizer, one_word=False),
        make_page_chunk(SEEDS, tokenizer, one_word=True),
    ]
    drawn = [make_scene(seed, square=False).image for seed in SEEDS]
    drawn += [make_page(seed, one_word).image for one_word in (False, True) for seed in SEEDS]
    pictures, groups = to_device(chunks, CPU)
    assert groups["words"].image_tokens < groups["scenes"].image_tokens
    seen = set()
    for group in groups.values():
        batch = group.packs
        with torch.no_grad():
            logits = packed.logits(pictures, group, packed.heads[0 if system is None else 1])
        for row in range(len(logits)):
            images = [drawn[index] for index in batch["images"][row].tolist()]
            history = ""
            for question in range(int((batch["kinds"][row] >= 0).sum())):
                mine = batch["questions"][row] == question
                text = tokenizer.decode(batch["tokens"][row][mine].tolist(), False)
                history = history + text if conversation else text
                head = words.prompt("", len(images), system).partition(words.END_OF_TURN)[0]
                if system is not None:
                    head = words.prompt("", len(images), system).rpartition(words.END_OF_TURN)[0]
                inputs = theirs.inputs([head + history], [images])
                with torch.no_grad():
                    theirs.model.model.rope_deltas = None
                    expected = theirs.model(**inputs).logits[0, -int(mine.sum()) :]
                torch.testing.assert_close(logits[row][mine], expected, rtol=0, atol=2e-4)
                seen.add(KINDS[batch["kinds"][row, question]])
    assert len(seen) >= 10
