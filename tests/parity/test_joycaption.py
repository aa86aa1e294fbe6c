"""JoyCaption's shape of LLaVA, run with its configuration, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from in_process import call
from joycaption_checkpoint import (
    IMAGE_TOKEN_ID,
    IMAGE_TOKENS,
    PREPROCESSOR,
    SIDE,
    TEMPLATE,
    make_checkpoint,
)
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlmbatch.commands.config_file import load_settings
from vlmbatch.config.shipped import find_config
from vlmbatch.models.tokenizer import Tokenizer

PROMPTS = ["Write a caption.", "Write a long descriptive caption for this image.", "Tags?"]
SIZES = [(61, 40), (24, 24), (17, 90)]
MAX_TOKENS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest, its images, and what transformers answers beside them."""
    folder = tmp_path_factory.mktemp("joycaption")
    model = make_checkpoint(folder / "model")
    rows, answers = [], []
    for index, (prompt, size) in enumerate(zip(PROMPTS, SIZES, strict=True)):
        values = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{index}.png")
        shown = f"<image>\n{prompt}" if index == 1 else prompt  # which the template trims again
        rows.append(json.dumps({"prompt": shown, "image": f"{index}.png"}))
        answers.append(answer(folder, model, prompt, Image.open(folder / f"{index}.png")))
    (folder / "manifest.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "answers.json").write_text(json.dumps(answers))
    return folder


def answer(folder: Path, model: Any, prompt: str, image: Image.Image) -> str:
    system = load_settings(find_config("joycaption"))["system_prompt"]
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    template = jinja2.Environment().from_string(TEMPLATE)
    text = template.render(
        messages=messages, add_generation_prompt=True, bos_token="<|begin_of_text|>"
    )
    tokenizer = Tokenizer.load(folder / "model")
    ids = tokenizer.encode(text, add_special_tokens=False)
    where = ids.index(IMAGE_TOKEN_ID)
    ids[where : where + 1] = [IMAGE_TOKEN_ID] * IMAGE_TOKENS
    fields = {key: value for key, value in PREPROCESSOR.items() if key != "image_processor_type"}
    pixels = SiglipImageProcessorPil(**fields)(images=[image], return_tensors="pt")
    given = torch.tensor([ids])
    made = model.generate(
        input_ids=given,
        attention_mask=torch.ones_like(given),
        pixel_values=pixels["pixel_values"],
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
    )
    return tokenizer.decode(made[0, len(ids) :].tolist())


@pytest.mark.parametrize("chunk", [5, 512])
def test_greedy_answers(folder: Path, tmp_path: Path, chunk: int) -> None:
    output = tmp_path / "out.parquet"
    command = ["run", folder / "manifest.jsonl", "--config", "joycaption", "-o", output, "-q"]
    command += ["-m", folder / "model", "--image-token-id", IMAGE_TOKEN_ID, "--temperature", 0]
    command += ["--image-feature-size", IMAGE_TOKENS, "--image-input-shape", f"1,3,{SIDE},{SIDE}"]
    command += ["--max-tokens", MAX_TOKENS, "--max-batched-tokens", chunk, "--image-workers", 0]
    assert call(command) == 0
    out = pq.read_table(output)
    assert out["text"].to_pylist() == json.loads((folder / "answers.json").read_text())
    assert out["image_tokens"].to_pylist() == [IMAGE_TOKENS] * len(PROMPTS)


def test_a_placeholder_in_the_prompt(folder: Path, tmp_path: Path) -> None:
    """Without the template, <image> stands for the model's own token, as in every family."""
    manifest = tmp_path / "manifest.jsonl"
    rows = [
        {"prompt": f"{token} What?", "image": str(folder / "0.png")}
        for token in ("<image>", "<|reserved_special_token_69|>")
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out.parquet"
    command = ["run", manifest, "-m", folder / "model", "-o", output, "-q", "--image-workers", 0]
    assert call(command) == 0
    first, second = pq.read_table(output)["text"].to_pylist()
    assert first == second
