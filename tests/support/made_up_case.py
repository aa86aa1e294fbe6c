"""Rows of the made-up family with what its dense model answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dense_made_up import DenseModel
from made_up_checkpoint import IMAGE_TOKEN_ID, make_checkpoint, make_rows
from made_up_family.processor import MadeUpImages
from PIL import Image, ImageOps
from rows_case import RowsCase

from vlmbatch.models.tokenizer import Tokenizer

MAX_TOKENS = 32
IMAGES = MadeUpImages(max_side=20)


@dataclass
class Case(RowsCase):
    max_tokens = MAX_TOKENS

    prompts: list[list[int]]  # with all image tokens
    expected: list[list[int]]


def make_case(folder: Path) -> Case:
    """The checkpoint, the rows and their answers, below ``folder``; the family is registered."""
    dense = make_checkpoint(folder / "model")
    manifest = make_rows(folder / "rows")
    tokenizer = Tokenizer.load(folder / "model")
    prompts, expected = [], []
    for line in manifest.read_text().splitlines():
        row = json.loads(line)
        pixels = [upright_pixels(manifest.parent / name) for name in row["image"]]
        prompt = expanded(
            tokenizer.encode(row["prompt"]), [len(p) * len(p[0]) // 16 for p in pixels]
        )
        prompts.append(prompt)
        features = [dense.features(each) for each in pixels]
        expected.append(dense.answer(prompt, features, MAX_TOKENS))
    check_that_all_matters(dense, prompts, expected, manifest)
    return Case(folder / "model", manifest, prompts, expected)


def upright_pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return IMAGES.process(ImageOps.exif_transpose(image).convert("RGB")).pixels


def expanded(token_ids: list[int], sizes: list[int]) -> list[int]:
    if token_ids.count(IMAGE_TOKEN_ID) != len(sizes):
        return token_ids
    left = iter(sizes)
    return [
        each
        for token in token_ids
        for each in ([token] * next(left) if token == IMAGE_TOKEN_ID else [token])
    ]


def check_that_all_matters(
    dense: DenseModel, prompts: list[list[int]], expected: list[list[int]], manifest: Path
) -> None:
    """Answers depend on shapes, deep levels and three rows of positions, or nothing is proved."""
    assert prompts[4] == prompts[5] and expected[4] != expected[5]
    wide, tall = (upright_pixels(manifest.parent / name) for name in ("wide.png", "tall.png"))
    assert wide.tobytes() == tall.tobytes() and wide.shape != tall.shape
    features = dense.features(wide)
    shallow = torch.cat((features[:, :, :1], torch.zeros_like(features[:, :, 1:])), dim=2)
    assert dense.answer(prompts[4], [shallow], MAX_TOKENS) != expected[4]
    line = features.view(1, 16, 3, -1)
    assert dense.answer(prompts[4], [line], MAX_TOKENS) != expected[4]
