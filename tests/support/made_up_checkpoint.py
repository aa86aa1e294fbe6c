"""A checkpoint of the made-up family, and rows of images of all sizes for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dense_made_up import EPS, SECTIONS, DenseModel
from model_folder import SPECIAL_TOKENS, make_model_folder
from PIL import Image
from safetensors.torch import save_file

from vlmbatch.attention import make_backend
from vlmbatch.models.family import load_model_config
from vlmbatch.models.registry import build_model
from vlmbatch.models.weights import materialise, random_weights, weight_slots

PACKAGE = "made_up_family"
IMAGE_TOKEN_ID = SPECIAL_TOKENS.index("<image>")
_HEADS, _KV_HEADS, _HEAD_DIM = 4, 2, 16


def make_checkpoint(folder: Path) -> DenseModel:
    """Write the checkpoint; the model that its answers are to equal. The family is registered."""
    make_model_folder(folder)
    (folder / "preprocessor_config.json").unlink()
    vocabulary = json.loads((folder / "config.json").read_bytes())["text_config"]["vocab_size"]
    eos = SPECIAL_TOKENS.index("</s>")
    text = {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": 1024,
        "rms_norm_eps": EPS,
        "eos_token_id": eos,
        "rope_scaling": {"rope_type": "default", "mrope_section": SECTIONS},
    }
    config = {"model_type": "made_up", "image_token_id": IMAGE_TOKEN_ID, "text_config": text}
    (folder / "config.json").write_text(json.dumps(config))
    made = load_model_config(folder)
    images: Any = object()  # with a tower
    model = build_model(made, images, make_backend("torch", "cpu"))
    materialise(model, torch.device("cpu"), torch.float32)
    random_weights(model, seed=3, std=0.3)
    tensors = {name: slot.target.clone() for name, slot in weight_slots(model)}
    save_file(tensors, folder / "model.safetensors")
    sizes = {"heads": _HEADS, "kv_heads": _KV_HEADS, "head_dim": _HEAD_DIM}
    return DenseModel.load(folder, **sizes, image_token_id=IMAGE_TOKEN_ID, eos=eos)


def make_rows(folder: Path) -> Path:
    """Write images and a manifest of rows that show none, one or several, here and there."""
    generator = np.random.default_rng(5)

    def photo(name: str, width: int, height: int, orientation: int | None = None) -> str:
        values = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        exif = Image.Exif()
        if orientation is not None:
            exif[0x0112] = orientation
        Image.fromarray(values).save(folder / name, exif=exif)
        return name

    folder.mkdir()
    # The same bytes of pixels once they are reduced: 2 by 8 patches, and 8 by 2.
    values = generator.integers(0, 256, 8 * 32 * 3, dtype=np.uint8)
    for name, shape in (("wide.png", (8, 32, 3)), ("tall.png", (32, 8, 3))):
        enlarged = values.reshape(shape).repeat(5, axis=0).repeat(4, axis=1)
        Image.fromarray(enlarged).save(folder / name)
    largest = photo("largest.png", 200, 240)
    tiny = photo("tiny.png", 5, 9)
    turned = photo("turned.jpg", 130, 60, orientation=6)
    middle = photo("middle.png", 90, 70)
    rows: list[tuple[str, list[str]]] = [
        ("only text", []),
        ("look <image> what is it?", [largest]),
        ("<image> one token", [tiny]),
        ("<image>a<image> b <image>", [middle, tiny, turned]),
        ("what <image> shape?", ["wide.png"]),
        ("what <image> shape?", ["tall.png"]),
        ("look <image> what is it then?", [largest]),
        (f"all of them: {'<image>' * 6 * 3} counted", [turned]),
        ("<image><image>", [tiny, middle]),
        ("twice <image> and <image>", [middle, middle]),
        ("more text, and then some more of it <image>", [turned]),
    ]
    manifest = folder / "manifest.jsonl"
    lines = [json.dumps({"prompt": prompt, "image": images}) for prompt, images in rows]
    manifest.write_text("\n".join(lines) + "\n")
    return manifest
