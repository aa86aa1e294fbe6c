"""Rows of images of many sizes for a LLaVA-NeXT model, with what transformers makes of them."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from llava_next_checkpoints import EOS_TOKEN_ID, IMAGE_TOKEN_ID, KINDS, make_checkpoint
from PIL import Image
from rows_case import RowsCase, write_rows
from torch import Tensor
from transformers import LlavaNextProcessor, LlavaOnevisionProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from vlmbatch.models.tokenizer import Tokenizer

MAX_TOKENS = 18
SIZES = {"wide": (130, 41), "tall": (31, 75), "small": (20, 17), "strip": (400, 3), "big": (90, 97)}
ROWS: list[tuple[str, list[str]]] = [
    ("only text", []),
    ("look <image> what is it?", ["wide"]),
    ("<image>a<image> b <image><image>", ["tall", "small", "wide", "strip"]),
    ("<image> at the start", ["big"]),
    ("<image> and <image>", ["big", "big"]),
    ("look <image> what is it then?", ["wide"]),
    ("a strip: <image>", ["strip"]),
    ("x<image>y<image>z<image>", ["small", "tall", "big"]),
]
_IMAGE_PROCESSORS = {
    "llava_next": LlavaNextImageProcessorPil,
    "llava_onevision": LlavaOnevisionImageProcessorPil,
}


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
        rows = [{name: each.to(device) for name, each in row.items()} for row in self.inputs]
        return [model(**row).logits[0] for row in rows]


def make_case(name: str, folder: Path) -> Case:
    theirs = make_checkpoint(name, folder / "model")
    manifest = write_rows(folder, SIZES, ROWS)
    inputs = [_inputs(folder, KINDS[name][0], prompt, names) for prompt, names in ROWS]
    expected = [_answer(theirs, each) for each in inputs]
    return Case(folder / "model", manifest, theirs, inputs, expected)


def their_image_processor(model: Path) -> Any:
    """The Pillow back end, with the settings of a checkpoint's folder."""
    settings = json.loads((model / "preprocessor_config.json").read_bytes())
    kind = json.loads((model / "config.json").read_bytes())["model_type"]
    del settings["image_processor_type"]
    return _IMAGE_PROCESSORS[kind](**settings)


def their_token_counts(model: Path, images: Any) -> list[int]:
    """Of each image, as transformers' processor counts them; ``images``: the image processor's."""
    config = json.loads((model / "config.json").read_bytes())
    side = config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]
    if config["model_type"] == "llava_next":
        processor = LlavaNextProcessor.__new__(LlavaNextProcessor)
        processor.patch_size = config["vision_config"]["patch_size"]
        processor.num_additional_image_tokens = 1
        processor.vision_feature_select_strategy = "default"
    else:
        processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
        processor.num_image_tokens = side**2
        processor.vision_feature_select_strategy = "full"
        processor.vision_aspect_ratio = config["vision_aspect_ratio"]
    processor.image_processor = their_image_processor(model)
    processor.image_token = "."
    count = len(images["image_sizes"])
    return [len(processor.replace_image_token(images, index)) for index in range(count)]


def _inputs(folder: Path, kind: str, prompt: str, names: list[str]) -> dict[str, Tensor]:
    model = folder / "model"
    ids = Tokenizer.load(model).encode(prompt)
    images: dict[str, Any] = {}
    if names:
        opened = [Image.open(folder / f"{name}.png") for name in names]
        given = [opened] if kind == "llava_onevision" else opened
        images = dict(their_image_processor(model)(given, return_tensors="pt"))
        left = iter(their_token_counts(model, images))
        ids = [each for token in ids for each in _repeated(token, left)]
    input_ids = torch.tensor([ids])
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **images}


def _repeated(token: int, left: Any) -> list[int]:
    return [token] * next(left) if token == IMAGE_TOKEN_ID else [token]


def _answer(theirs: Any, inputs: dict[str, Tensor]) -> list[int]:
    tokens = theirs.generate(
        **inputs, max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=EOS_TOKEN_ID
    )
    answer: list[int] = tokens[0, inputs["input_ids"].shape[1] :].tolist()
    return answer
