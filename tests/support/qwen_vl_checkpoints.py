"""Tiny random Qwen-VL checkpoints, made and saved by transformers, usable end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from byte_tokenizer import byte_tokenizer

KINDS = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl")
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIAL_TOKENS += ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
IMAGE_TOKEN_ID = SPECIAL_TOKENS.index("<|image_pad|>")
EOS_TOKEN_ID = SPECIAL_TOKENS.index("<|im_end|>")
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}\
{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}\
<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in part %}{{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

_CLASSES = {
    "qwen2_vl": (transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (transformers.Qwen3VLConfig, transformers.Qwen3VLForConditionalGeneration),
}


def make_checkpoint(
    kind: str, folder: Path, *, published: bool = True, four_heads: bool = False
) -> Any:
    """Write a checkpoint with its tokenizer and processor; return transformers' own model.

    ``published``: tensors are named as the published checkpoints name them, else as a model of
    transformers 5 does. ``four_heads``: of the decoder, for ranks that divide them.
    """
    torch.manual_seed(0)
    make_config, make_model = _CLASSES[kind]
    config = make_config(
        text_config=_text_config(kind, four_heads),
        vision_config=_vision_config(kind),
        image_token_id=IMAGE_TOKEN_ID,
        video_token_id=SPECIAL_TOKENS.index("<|video_pad|>"),
        vision_start_token_id=SPECIAL_TOKENS.index("<|vision_start|>"),
        vision_end_token_id=SPECIAL_TOKENS.index("<|vision_end|>"),
        tie_word_embeddings=kind == "qwen2_vl",
    )
    model = make_model._from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that every tensor matters
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.generation_config.eos_token_id = EOS_TOKEN_ID
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder, save_original_format=published)
    _write_tokenizer(folder)
    _write_json(folder / "preprocessor_config.json", preprocessor(kind))
    return model


def preprocessor(kind: str) -> dict[str, Any]:
    """From 2 to 24 tokens an image, but for strips."""
    patch = _patch_size(kind)
    least, most = (count * (2 * patch) ** 2 for count in (2, 24))
    sizes = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2}
    if kind == "qwen3_vl":
        halves = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        limits: dict[str, Any] = {"size": {"shortest_edge": least, "longest_edge": most}}
        return {"image_processor_type": "Qwen2VLImageProcessorFast", **sizes, **limits, **halves}
    limits = {"min_pixels": least, "max_pixels": most}
    return {"image_processor_type": "Qwen2VLImageProcessor", **sizes, **limits}


def _patch_size(kind: str) -> int:
    return 16 if kind == "qwen3_vl" else 14


def _text_config(kind: str, four_heads: bool) -> dict[str, Any]:
    qwen3 = kind == "qwen3_vl"
    sections = [4, 2, 2] if qwen3 else [2, 2, 2] if four_heads else [2, 3, 3]
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3 if qwen3 else 2,  # more than there are deep levels
        "num_attention_heads": 4 if qwen3 or four_heads else 3,
        "num_key_value_heads": 2 if qwen3 or four_heads else 1,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": EOS_TOKEN_ID,
        "pad_token_id": 0,
        **({"head_dim": 16} if qwen3 else {}),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": sections,
        },
    }


def _vision_config(kind: str) -> dict[str, Any]:
    common = {"depth": 3, "num_heads": 2, "patch_size": _patch_size(kind)}
    if kind == "qwen2_vl":
        return {**common, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
    common |= {"hidden_size": 32, "intermediate_size": 40, "out_hidden_size": 48}
    if kind == "qwen2_5_vl":  # the intermediate size no multiple of 8, as in the published towers
        common |= {"intermediate_size": 44}
        return {**common, "window_size": 56, "fullatt_block_indexes": [1]}
    return {**common, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]}


def _write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer: one token for each byte, beside the special ones."""
    tokenizer = byte_tokenizer(SPECIAL_TOKENS)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    _write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
