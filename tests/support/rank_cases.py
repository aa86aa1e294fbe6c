"""What ranks are to answer: rows for a tiny checkpoint of each family, whose heads four divide."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
import llava_next_case
import llava_next_checkpoints
import qwen_vl_case
import qwen_vl_checkpoints
import torch
from PIL import Image
from rank_processes import Case
from rows_case import write_rows

from vlmbatch.attention import make_backend
from vlmbatch.config import EngineConfig, ImageArguments, PromptConfig, SamplingParams
from vlmbatch.models.family import load_model_config, load_processor
from vlmbatch.models.registry import load_vision
from vlmbatch.types import FeatureImage, ImageRef, PixelImage, Request, Row

LLAVA_SIZES = {"wide": (40, 20), "tall": (20, 40)}
LLAVA_ROWS: list[tuple[str, list[str]]] = [
    ("only text", []),
    ("<image>what is it?", ["wide"]),
    ("<image>and<image>", ["tall", "wide"]),
    ("<image>what is it then?", ["wide"]),
]


def _few(rows: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Without an image, with two, and twice with the same one."""
    return [row for row in rows if row[1] in ([], ["wide"]) or row[1][1:] == row[1][:1]]


FAMILIES: dict[str, Any] = {
    "llava": (
        partial(checkpoints.make_checkpoint, "llama", "clip", tower_heads=4),
        LLAVA_SIZES,
        LLAVA_ROWS,
    ),
    **{
        name: (
            partial(llava_next_checkpoints.make_checkpoint, name, four_heads=True),
            llava_next_case.SIZES,
            _few(llava_next_case.ROWS),
        )
        for name in ("next-llama", "onevision")
    },
    **{
        name: (
            partial(qwen_vl_checkpoints.make_checkpoint, name, four_heads=True),
            qwen_vl_case.SIZES,
            _few(qwen_vl_case.ROWS),
        )
        for name in qwen_vl_checkpoints.KINDS
    },
}


def make_case(name: str, folder: Path, engine: EngineConfig) -> Case:
    """Rows of which some share images and prefixes, and one has stored features for an image."""
    make, sizes, rows = FAMILIES[name]
    make(folder / "model")
    write_rows(folder, sizes, rows)
    config = load_model_config(folder / "model")
    processor = load_processor(folder / "model", config, PromptConfig(), ImageArguments())
    requests = []
    for index, (prompt, names) in enumerate(rows):
        row = Row(index, "0", 1, "", prompt=prompt, images=(ImageRef("some"),) * len(names))
        of_row = processor.images.at(None, len(names))
        images = [of_row.process(Image.open(folder / f"{each}.png")) for each in names]
        encoded = processor.encode(processor.tokenize(row), images)
        requests.append(
            Request(
                index,
                encoded.token_ids,
                SamplingParams(max_tokens=4, ignore_eos=True),
                tuple(images),
                encoded.image_spans,
                encoded.positions,
                encoded.next_position,
            )
        )
    cpu, backend = torch.device("cpu"), make_backend("torch", "cpu")
    vision = load_vision(folder / "model", config, processor.images, cpu, torch.float32, backend)
    last = next(each for each in reversed(requests) if len(each.images) == 1)
    image = last.images[0]
    assert isinstance(image, PixelImage)
    (features,) = vision.extract_features([torch.from_numpy(image.pixels)], [image.grid])
    stored = FeatureImage(features.numpy(), b"features", image.grid)
    requests.append(replace(last, index=len(requests), images=(stored,)))
    return Case(folder / "model", config, processor, engine, requests)
