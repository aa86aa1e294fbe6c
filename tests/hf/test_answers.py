"""Tiny random models of other classes: a run's answers are those of a plain ``generate``, row by
row, whatever a row is batched with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from hf_checkpoints import KINDS, Kind
from in_process import call
from PIL import Image

SIZES = [(20, 30), (64, 40), (33, 17), (50, 50), (16, 16), (40, 90)]  # width and height in pixels
MAX_TOKENS = 10


class Asked(NamedTuple):
    prompt: str
    images: tuple[int, ...] = ()


ROWS = [
    Asked("<image>What is it?", (0,)),
    Asked("Say hello to everyone in the room."),
    Asked("<image>x", (1,)),
    Asked("First <image> and then, after a while, <image> again: which?", (2, 3)),
    Asked("<image>A longer question about the picture that was shown before.", (4,)),
    Asked("short"),
    Asked("Two: <image><image>", (5, 0)),
    Asked("<image>What is that?", (5,)),
    Asked("<image>hm", (3,)),
]


@dataclass
class Case:
    """A checkpoint, and transformers' own model and processor of it."""

    folder: Path
    kind: Kind
    images: list[Path]

    def __post_init__(self) -> None:
        self.processor = transformers.AutoProcessor.from_pretrained(self.folder)
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(
            self.folder, dtype=torch.float32
        ).eval()

    @property
    def rows(self) -> list[Asked]:
        least, most = int(not self.kind.text_only), 2 if self.kind.several else 1
        return [row for row in ROWS if least <= len(row.images) <= most]

    def pictures(self, row: Asked) -> list[Image.Image]:
        return [Image.open(self.images[image]).convert("RGB") for image in row.images]

    def inputs(self, row: Asked) -> Any:
        pictures = self.pictures(row)
        nested = [pictures] if self.kind.image_token != "<imgpad>" else pictures
        text = row.prompt.replace("<image>", self.kind.image_token)
        return self.processor(text=[text], images=nested if pictures else None, return_tensors="pt")

    def chat_inputs(self, row: Asked) -> Any:
        parts: list[dict[str, Any]] = [{"type": "image", "image": p} for p in self.pictures(row)]
        parts.append({"type": "text", "text": row.prompt.replace("<image>", "")})
        return self.processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def answer(self, inputs: Any, **options: Any) -> list[int]:
        with torch.inference_mode():
            tokens = self.model.generate(
                **inputs, max_new_tokens=MAX_TOKENS, do_sample=False, **options
            )
        new: list[int] = tokens[0, inputs["input_ids"].shape[1] :].tolist()
        return new

    def text(self, token_ids: list[int]) -> str:
        text: str = self.processor.tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def run(self, rows: list[dict[str, Any]], *options: str, status: int = 0) -> list[Any]:
        manifest, output = self.folder / "m.jsonl", self.folder / "out.parquet"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        arguments = ["run", manifest, "-m", self.folder, "-o", output, "--overwrite", "-q"]
        arguments += ["--max-tokens", MAX_TOKENS, "--image-workers", 0, "--max-num-seqs", 4]
        assert call([*arguments, *options]) == status
        return list(pq.read_table(output).to_pylist()) if status == 0 else []

    def manifest_row(self, row: Asked) -> dict[str, Any]:
        return {"prompt": row.prompt, "image": [str(self.images[image]) for image in row.images]}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    paths = []
    for number, (width, height) in enumerate(SIZES):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture(scope="module", params=KINDS)
def case(
    request: pytest.FixtureRequest,
    images: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp(request.param)
    KINDS[request.param].make(folder)
    yield Case(folder, KINDS[request.param], images)


def test_answers_are_those_of_a_plain_generate(case: Case) -> None:
    found = case.run([case.manifest_row(row) for row in case.rows])
    assert len({row["text"] for row in found}) > 1
    for row, result in zip(case.rows, found, strict=True):
        inputs = case.inputs(row)
        token_ids = case.answer(inputs)
        assert result["error_message"] is None
        assert result["text"] == case.text(token_ids)
        assert result["completion_tokens"] == len(token_ids)
        assert result["prompt_tokens"] == inputs["input_ids"].shape[1]
        image_token_id = case.model.config.image_token_id
        assert result["image_tokens"] == int((inputs["input_ids"] == image_token_id).sum())
        assert (result["image_tokens"] > 0) == bool(row.images)


def test_chats_are_those_of_the_checkpoints_own_template(case: Case) -> None:
    rows = case.rows
    plain = [
        {**case.manifest_row(row), "prompt": row.prompt.replace("<image>", "")} for row in rows
    ]
    if not case.kind.chats:
        case.run(plain, "--chat", status=2)
        return
    found = case.run(plain, "--chat")
    for row, result in zip(rows, found, strict=True):
        inputs = case.chat_inputs(row)
        assert result["error_message"] is None
        assert result["prompt_tokens"] == inputs["input_ids"].shape[1]
        assert result["text"] == case.text(case.answer(inputs))
