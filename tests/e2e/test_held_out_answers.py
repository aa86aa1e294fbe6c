"""The sample model through the real command, and token for token beside Hugging Face."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from held_out_rows import HeldOut
from real_command import run
from sample_model import answer

from vlmbatch.config import EngineConfig

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "samples" / "tiny-llava"
NUM_ROWS = 70
MAX_TOKENS = 48


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of scenes that the model was not trained on."""
    folder = tmp_path_factory.mktemp("held-out")
    command = [sys.executable, str(ROOT / "samples" / "make_samples.py")]
    options = ["--rows", str(NUM_ROWS), "--seed", "4242", "--out", str(folder)]
    subprocess.run(command + options, check=True, capture_output=True)
    return folder / "manifest.jsonl"


def test_at_least_97_percent_of_the_answers_are_exactly_right(
    held_out: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.parquet"
    command = ["run", held_out, "-m", MODEL, "-o", output, "--max-tokens", MAX_TOKENS, "-q"]
    assert run(*command).returncode == 0
    table = pq.read_table(output)
    assert table["row_index"].to_pylist() == list(range(NUM_ROWS))
    right = [
        a == b for a, b in zip(table["text"].to_pylist(), table["answer"].to_pylist(), strict=True)
    ]
    assert sum(right) / NUM_ROWS >= 0.97


def huggingface_tokens(manifest: Path) -> list[list[int]]:
    """Greedy token ids of every row, end-of-sequence token included, in batches of 50."""
    from PIL import Image
    from transformers import AutoTokenizer, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = LlavaForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()
    processor = LlavaProcessor.from_pretrained(
        MODEL,
        image_processor=CLIPImageProcessorPil.from_pretrained(MODEL),
        tokenizer=AutoTokenizer.from_pretrained(MODEL, padding_side="left"),
    )
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    # Long answers together: a batch ends with its longest.
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]["answer"]))
    result: list[list[int]] = [[] for _ in rows]
    for first in range(0, len(rows), 50):
        numbers = order[first : first + 50]
        batch = [rows[number] for number in numbers]
        images = [Image.open(manifest.parent / row["image"]).convert("RGB") for row in batch]
        inputs = processor(
            images=images,
            text=[row["prompt"] for row in batch],
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        eos = model.generation_config.eos_token_id
        answers = tokens[:, inputs["input_ids"].shape[1] :].tolist()
        for number, row in zip(numbers, answers, strict=True):
            end = row.index(eos) + 1 if eos in row else len(row)
            result[number] = row[:end]
    return result


def test_greedy_tokens_equal_hugging_face_on_every_row(held_out: Path) -> None:
    expected = huggingface_tokens(held_out)
    rows = HeldOut(MODEL, held_out, [])
    assert answer(rows.engine(EngineConfig()), rows.requests) == (expected, {})
    rows.encode_once()  # what follows differs behind the tower alone
    starved = EngineConfig(
        kv_cache_tokens=1024, max_batched_tokens=200, enable_prefix_caching=False
    )
    assert answer(rows.engine(starved), rows.requests) == (expected, {})
