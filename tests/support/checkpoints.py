"""Tiny random LLaVA checkpoints, made and saved by transformers, usable end to end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import transformers
from byte_tokenizer import byte_tokenizer
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

TextKind = Literal["llama", "mistral", "qwen2"]
Tower = Literal["clip", "siglip"]
Layout = Literal["llava-hf", "saved", "internal"]
Rope = Literal["default", "linear", "llama3"]

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<image>"]
IMAGE_TOKEN_ID = SPECIAL_TOKENS.index("<image>")
EOS_TOKEN_ID = SPECIAL_TOKENS.index("</s>")
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
IMAGE_SIZE, PATCH_SIZE = 24, 6
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
SLIDING_WINDOW = 20  # of the mistral checkpoints: shorter than one image and its question

_ROPE = {
    "default": {"rope_type": "default", "rope_theta": 10_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.5},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def make_checkpoint(
    kind: TextKind,
    tower: Tower,
    folder: Path,
    *,
    layout: Layout = "llava-hf",
    rope: Rope = "default",
    seed: int = 0,
    tower_heads: int = 2,
) -> LlavaForConditionalGeneration:
    """Write a checkpoint with tokenizer and processor files; return transformers' own model.

    ``layout`` "llava-hf" names tensors as the published checkpoints do, "saved" as
    ``save_pretrained`` of transformers 5 does, "internal" as its ``state_dict`` does.
    Each image takes ``num_image_tokens(tower)`` tokens.
    """
    torch.manual_seed(seed)
    config = transformers.LlavaConfig(
        text_config=_text_config(kind, rope),
        vision_config=_vision_config(tower, tower_heads),
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=num_image_tokens(tower),
        vision_feature_layer=-2 if tower == "clip" else [-1, 1],
        vision_feature_select_strategy=_select_strategy(tower),
        tie_word_embeddings=kind == "qwen2",
    )
    model = LlavaForConditionalGeneration._from_config(
        config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that every tensor matters
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.generation_config.eos_token_id = EOS_TOKEN_ID
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder, save_original_format=layout != "internal")
    if layout == "llava-hf":
        _rename_to_published(folder / "model.safetensors")
    _write_tokenizer(folder)
    _write_processor(tower, folder)
    return model


def num_image_tokens(tower: Tower) -> int:
    """Return the tokens of one image: "default" selection drops CLIP's class token."""
    return NUM_PATCHES


def _select_strategy(tower: Tower) -> str:
    return "default" if tower == "clip" else "full"


def _text_config(kind: TextKind, rope: Rope) -> transformers.PretrainedConfig:
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": SPECIAL_TOKENS.index("<s>"),
        "eos_token_id": EOS_TOKEN_ID,
        "pad_token_id": 0,
        "rope_parameters": _ROPE[rope],
    }
    if kind == "llama":
        return transformers.LlamaConfig(**sizes)
    if kind == "mistral":
        return transformers.MistralConfig(**sizes, sliding_window=SLIDING_WINDOW)
    return transformers.Qwen2Config(**sizes, tie_word_embeddings=True)


def _vision_config(tower: Tower, heads: int) -> transformers.PretrainedConfig:
    config = transformers.CLIPVisionConfig if tower == "clip" else transformers.SiglipVisionConfig
    return config(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=heads,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )


def _rename_to_published(file: Path) -> None:
    tensors = load_file(file)
    renamed = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, file, metadata={"format": "pt"})


def _write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer: one token for each byte, beside the special ones."""
    tokenizer = byte_tokenizer(SPECIAL_TOKENS, first="<s>")
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "image_token": "<image>",
            "model_max_length": 512,
        },
    )


def _write_processor(tower: Tower, folder: Path) -> None:
    clip = tower == "clip"
    size = {"shortest_edge": IMAGE_SIZE} if clip else {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor" if clip else "SiglipImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_resize": True,
        "size": size,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48, 0.46, 0.41] if clip else [0.5, 0.5, 0.5],
        "image_std": [0.27, 0.26, 0.28] if clip else [0.5, 0.5, 0.5],
    }
    if clip:
        crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        preprocessor |= {"do_center_crop": True, "crop_size": crop, "do_convert_rgb": True}
    _write_json(folder / "preprocessor_config.json", preprocessor)
    _write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": "<image>",
            "patch_size": PATCH_SIZE,
            "vision_feature_select_strategy": _select_strategy(tower),
            "num_additional_image_tokens": int(clip),
        },
    )


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
