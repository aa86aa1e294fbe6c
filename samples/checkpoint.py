"""The sample model's shape, and its folder in the layout of the published llava-hf checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
import vocabulary
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlavaConfig, LlavaForConditionalGeneration

IMAGE_SIDE = 80
PATCH = 8
NUM_PATCHES = (IMAGE_SIDE // PATCH) ** 2
MAX_LENGTH = 512
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of ``config.json``."""
    bos, eos, pad, image = (
        vocabulary.token_id(tokenizer, token)
        for token in (vocabulary.BOS, vocabulary.EOS, vocabulary.PAD, vocabulary.IMAGE)
    )
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "torch_dtype": "float32",
        "image_token_index": image,
        "image_seq_length": NUM_PATCHES,
        "pad_token_id": pad,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "initializer_range": 0.05,
            "max_position_embeddings": MAX_LENGTH,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 6,  # the last one is never used: features come from layer -2
            "num_attention_heads": 4,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "image_size": IMAGE_SIDE,
            "patch_size": PATCH,
            "projection_dim": 128,
        },
    }


def new_model(tokenizer: Tokenizer) -> LlavaForConditionalGeneration:
    config = LlavaConfig.from_dict(model_config(tokenizer))
    return LlavaForConditionalGeneration._from_config(config, dtype=torch.float32)


def published_name(name: str) -> str:
    """A parameter's name in the published checkpoints, from the one it has in transformers 5."""
    name = name.removeprefix("model.")
    name = re.sub(r"^vision_tower\.(vision_model\.)?", "vision_tower.vision_model.", name)
    name = re.sub(r"^language_model\.(model\.)?", "language_model.model.", name)
    return re.sub(r"^lm_head\.", "language_model.lm_head.", name)


def save_checkpoint(
    model: LlavaForConditionalGeneration, tokenizer: Tokenizer, folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        published_name(name): tensor.detach().float().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.endswith("position_ids")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary.save_tokenizer(tokenizer, folder, MAX_LENGTH)
    config = model_config(tokenizer)
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {
            "do_sample": False,
            "max_new_tokens": 32,
            **{
                name: config["text_config"][name]
                for name in ("bos_token_id", "eos_token_id", "pad_token_id")
            },
        },
    )
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": IMAGE_SIDE},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
    )
    _write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": vocabulary.IMAGE,
            "num_additional_image_tokens": 1,
            "patch_size": PATCH,
            "vision_feature_select_strategy": "default",
        },
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
