"""Odd values in the files of LLaVA-NeXT checkpoints: refused with a message or loaded."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fuzzing import REFUSED, damaged_json, examples, run_manifest
from hypothesis import given
from hypothesis import strategies as st
from llava_next_checkpoints import make_checkpoint
from PIL import Image

KINDS = ("next-mistral", "onevision")
JSON_FILES = ("config.json", "preprocessor_config.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind, with a manifest of a row of an image and one of two."""
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp("models") / kind
        make_checkpoint(kind, made[kind])
        pixels = np.arange(30 * 50 * 3, dtype=np.uint16).astype(np.uint8).reshape(30, 50, 3)
        Image.fromarray(pixels).save(made[kind] / "image.png")
        rows = [
            {"prompt": "<image> Hm?" * count, "image": ["image.png"] * count} for count in (1, 2)
        ]
        (made[kind] / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def run_with(checkpoint: Path, name: str, content: bytes) -> int:
    """The exit status with one file of the checkpoint replaced."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "model")
        shutil.copytree(checkpoint, folder)
        (folder / name).write_bytes(content)
        status, output = run_manifest(folder / "m.jsonl", "--chat", model=folder)
        assert output.exists() == (status != REFUSED)
        return status


@pytest.mark.parametrize("kind", KINDS)
def test_the_undamaged_checkpoints_answer(checkpoints: dict[str, Path], kind: str) -> None:
    assert run_with(checkpoints[kind], "other.txt", b"") == 0


@examples(25)
@given(st.data(), st.sampled_from(KINDS), st.sampled_from(JSON_FILES))
def test_odd_values(
    checkpoints: dict[str, Path], data: st.DataObject, kind: str, name: str
) -> None:
    original = json.loads((checkpoints[kind] / name).read_bytes())
    run_with(checkpoints[kind], name, data.draw(damaged_json(original)))
