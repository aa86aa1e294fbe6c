"""Odd values in the files of checkpoints that transformers answers: a message, or answers."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fuzzing import damaged_json, examples, run_manifest
from hf_checkpoints import KINDS
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

NAMES = ("gemma3", "idefics3", "mllama")
FILES = ("config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind, with a manifest of an image and one of text."""
    made = {}
    for name in NAMES:
        made[name] = tmp_path_factory.mktemp(name) / "model"
        KINDS[name].make(made[name])
        pixels = np.arange(60 * 90 * 3, dtype=np.uint8).reshape(60, 90, 3)
        Image.fromarray(pixels).save(made[name] / "image.png")
        rows = [{"prompt": "<image> Hm?", "image": "image.png"}, {"prompt": "Hm?"}]
        (made[name] / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@examples(15)
@given(st.data(), st.sampled_from(NAMES), st.sampled_from(FILES))
def test_odd_values(
    checkpoints: dict[str, Path], data: st.DataObject, kind: str, name: str
) -> None:
    original = json.loads((checkpoints[kind] / name).read_bytes())
    content = data.draw(damaged_json(original))
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "model")
        shutil.copytree(checkpoints[kind], folder)
        (folder / name).write_bytes(content)
        run_manifest(folder / "m.jsonl", "--chat", model=folder)
