"""A tiny checkpoint of another class, rows for it, and what a plain ``generate`` makes of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from hf_checkpoints import Kind
from in_process import call
from PIL import Image

SIZES = [(20, 30), (64, 40), (33, 17), (50, 50), (16, 16), (40, 90)]  # width and height in pixels
MAX_TOKENS = 4


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

    def inputs(self, row: Asked, pictures: list[Image.Image] | None = None) -> Any:
        pictures = self.pictures(row) if pictures is None else pictures
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


def make_images(folder: Path) -> list[Path]:
    """Noise, in files of all ``SIZES``."""
    random = np.random.default_rng(0)
    paths = []
    for number, (width, height) in enumerate(SIZES):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths
