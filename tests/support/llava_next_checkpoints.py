"""Tiny random LLaVA-NeXT and LLaVA-OneVision checkpoints, usable end to end.

Made and saved by transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from byte_tokenizer import byte_tokenizer

# By name: the model_type, and that of the decoder.
KINDS = {
    "next-llama": ("llava_next", "llama"),
    "next-mistral": ("llava_next", "mistral"),
    "onevision": ("llava_onevision", "qwen2"),
}
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
IMAGE_TOKEN_ID = SPECIAL_TOKENS.index("<image>")
EOS_TOKEN_ID = SPECIAL_TOKENS.index("<|im_end|>")
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
TILE = 24  # pixels
MAX_TILES = 2  # of OneVision, before features are scaled down
# As those published, the images of all text of a message stand before it.
TEMPLATE = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}\
{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}\
{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
{% endif %}"""


def make_checkpoint(
    name: str, folder: Path, *, published: bool = True, four_heads: bool = False
) -> Any:
    """Write a checkpoint with its tokenizer and processor; return transformers' own model.

    ``published``: tensors are named as the published checkpoints name them, else as a model of
    transformers 5 does. ``four_heads``: of decoder and tower, for ranks that divide them.
    """
    torch.manual_seed(0)
    kind, text = KINDS[name]
    config = _config(kind, text, four_heads)
    model = transformers.AutoModelForImageTextToText.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that every tensor matters
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.generation_config.eos_token_id = EOS_TOKEN_ID
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder, save_original_format=published)
    write_tokenizer(folder)
    _write_json(folder / "preprocessor_config.json", preprocessor(kind))
    return model


def preprocessor(kind: str) -> dict[str, Any]:
    pinpoints = {"image_grid_pinpoints": _pinpoints(kind)}
    if kind == "llava_next":
        crop = {"do_center_crop": True, "crop_size": {"height": TILE, "width": TILE}}
        size = {"shortest_edge": TILE}
        return {
            "image_processor_type": "LlavaNextImageProcessor",
            "size": size,
            **crop,
            **pinpoints,
        }
    return {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "size": {"height": TILE, "width": TILE},
        "image_mean": [0.5, 0.4, 0.6],
        "image_std": [0.5, 0.5, 0.5],
        **pinpoints,
    }


def _pinpoints(kind: str) -> list[list[int]]:
    sides = [TILE, 2 * TILE, 3 * TILE]
    if kind == "llava_onevision":
        return [[height, width] for height in sides for width in sides]
    return [[sides[0], sides[1]], [sides[1], sides[0]], [sides[1], sides[1]], [sides[2], sides[0]]]


def _config(kind: str, text: str, four_heads: bool) -> Any:
    siglip = kind == "llava_onevision"
    vision = {
        "model_type": "siglip_vision_model" if siglip else "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4 if four_heads else 2,
        "image_size": TILE,
        "patch_size": 7 if siglip else 8,  # with some pixels over, as 14 into 384
    }
    classes = {
        "llava_next": transformers.LlavaNextConfig,
        "llava_onevision": transformers.LlavaOnevisionConfig,
    }
    more = {"vision_aspect_ratio": f"anyres_max_{MAX_TILES}"} if siglip else {}
    return classes[kind](
        vision_config=vision,
        text_config=_text_config(text, four_heads),
        image_token_index=IMAGE_TOKEN_ID,
        image_grid_pinpoints=_pinpoints(kind),
        tie_word_embeddings=text == "qwen2",
        **more,
    )


def _text_config(text: str, four_heads: bool) -> dict[str, Any]:
    return {
        "model_type": text,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4 if four_heads else 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": EOS_TOKEN_ID,
        "pad_token_id": 0,
        **({"sliding_window": None, "rope_theta": 1e3} if text == "mistral" else {}),
    }


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer: one token for each byte, beside the special ones."""
    tokenizer = byte_tokenizer(SPECIAL_TOKENS)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    _write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
