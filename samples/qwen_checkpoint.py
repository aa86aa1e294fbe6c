"""The second sample model's shape, and its folder in the layout of the published Qwen3-VL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import qwen_vocabulary as words
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from vocabulary import token_id

PATCH, MERGE = 8, 2
FACTOR = PATCH * MERGE  # pixels along a side of an image token
MIN_PIXELS, MAX_PIXELS = 16 * FACTOR**2, 64 * FACTOR**2
MAX_IMAGE_TOKENS = MAX_PIXELS // FACTOR**2
MAX_LENGTH = 1024
MEAN = STD = 0.5
ROPE_THETA = 10_000.0  # of text and vision
ROPE_SECTIONS = (6, 5, 5)


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of ``config.json``."""
    hidden_size, eos = 128, token_id(tokenizer, words.END_OF_TURN)
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "torch_dtype": "float32",
        "image_token_id": token_id(tokenizer, words.IMAGE),
        "video_token_id": token_id(tokenizer, words.VIDEO),
        "vision_start_token_id": token_id(tokenizer, words.VISION_START),
        "vision_end_token_id": token_id(tokenizer, words.VISION_END),
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": hidden_size,
            "intermediate_size": 384,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "initializer_range": 0.05,
            "max_position_embeddings": MAX_LENGTH,
            "rope_theta": ROPE_THETA,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_section": list(ROPE_SECTIONS),
                "mrope_interleaved": True,
            },
            "eos_token_id": eos,
            "pad_token_id": token_id(tokenizer, words.END_OF_TEXT),
            "tie_word_embeddings": True,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": 6,
            "hidden_size": 96,
            "hidden_act": "gelu_pytorch_tanh",
            "intermediate_size": 384,
            "num_heads": 4,
            "in_channels": 3,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden_size,
            "num_position_embeddings": 144,
            "deepstack_visual_indexes": [1, 3],
            "initializer_range": 0.05,
        },
    }


def new_model(tokenizer: Tokenizer) -> Qwen3VLForConditionalGeneration:
    config = Qwen3VLConfig.from_dict(model_config(tokenizer))
    return Qwen3VLForConditionalGeneration._from_config(config, dtype=torch.float32)


def save_checkpoint(
    model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer, folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embeddings
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    words.save_tokenizer(tokenizer, folder, MAX_LENGTH)
    config = model_config(tokenizer)
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {
            "do_sample": False,
            "max_new_tokens": 64,
            "eos_token_id": config["text_config"]["eos_token_id"],
            "pad_token_id": config["text_config"]["pad_token_id"],
        },
    )
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "merge_size": MERGE,
            "image_mean": [MEAN] * 3,
            "image_std": [STD] * 3,
        },
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
