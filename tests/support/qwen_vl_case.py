"""Rows of images of many sizes for a Qwen-VL model, with what transformers makes of them."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from qwen_vl_checkpoints import EOS_TOKEN_ID, IMAGE_TOKEN_ID, make_checkpoint
from rows_case import RowsCase, write_rows
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlmbatch.models.tokenizer import Tokenizer

MAX_TOKENS = 18
SIZES = {"wide": (230, 41), "tall": (60, 200), "small": (20, 17), "even": (112, 84)}
PAD = "<|vision_start|><|image_pad|><|vision_end|>"
ROWS: list[tuple[str, list[str]]] = [
    ("only text", []),
    ("look <image> what is it?", ["wide"]),
    ("<image>a<image> b <image><image>", ["tall", "small", "wide", "even"]),
    (f"{PAD} in the model's own tokens", ["small"]),
    ("<image> and <image>", ["even", "even"]),
    ("look <image> what is it then?", ["wide"]),
]


@dataclass
class Case(RowsCase):
    """``inputs``: of each row, as transformers' model takes them; ``expected``: its answers."""

    max_tokens = MAX_TOKENS

    theirs: Any
    inputs: list[dict[str, Tensor]]
    expected: list[list[int]]

    @torch.inference_mode()
    def their_logits(self, device: str, dtype: torch.dtype) -> list[Tensor]:
        """Of all rows (tokens, V), by transformers in ``dtype``."""
        model = copy.deepcopy(self.theirs).to(device, dtype)
        logits = []
        for row in self.inputs:
            model.model.rope_deltas = None  # which it keeps from prompt to prompt
            logits.append(
                model(**{name: values.to(device) for name, values in row.items()}).logits[0]
            )
        return logits


def make_case(kind: str, folder: Path) -> Case:
    theirs = make_checkpoint(kind, folder / "model")
    manifest = write_rows(folder, SIZES, ROWS)
    inputs = [_inputs(folder, prompt, names) for prompt, names in ROWS]
    expected = [_answer(theirs, each) for each in inputs]
    return Case(folder / "model", manifest, theirs, inputs, expected)


def their_images(folder: Path, model: Path, names: list[str]) -> dict[str, Tensor]:
    """``pixel_values`` and ``image_grid_thw`` of the images."""
    settings = json.loads((model / "preprocessor_config.json").read_bytes())
    del settings["image_processor_type"]
    processor = Qwen2VLImageProcessorPil(**settings)
    images = [Image.open(folder / f"{name}.png") for name in names]
    made = processor(images=images, return_tensors="pt")
    return {name: made[name] for name in ("pixel_values", "image_grid_thw")}


def _inputs(folder: Path, prompt: str, names: list[str]) -> dict[str, Tensor]:
    tokenizer = Tokenizer.load(folder / "model")
    images = their_images(folder, folder / "model", names) if names else {}
    ids = tokenizer.encode(prompt.replace("<image>", PAD))
    if names:
        left = iter((images["image_grid_thw"].prod(-1) // 4).tolist())
        ids = [each for token in ids for each in _repeated(token, left)]
    input_ids = torch.tensor([ids])
    types = (input_ids == IMAGE_TOKEN_ID).int()
    ones = torch.ones_like(input_ids)
    return {"input_ids": input_ids, "attention_mask": ones, "mm_token_type_ids": types, **images}


def _repeated(token: int, left: Any) -> list[int]:
    return [token] * next(left) if token == IMAGE_TOKEN_ID else [token]


def _answer(theirs: Any, inputs: dict[str, Tensor]) -> list[int]:
    theirs.model.rope_deltas = None  # which it keeps from prompt to prompt
    tokens = theirs.generate(
        **inputs, max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=EOS_TOKEN_ID
    )
    answer: list[int] = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    return answer
