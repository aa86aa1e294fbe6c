"""A checkpoint's folder without weights: all that is read of it before an engine is built."""

from __future__ import annotations

import json
from pathlib import Path

from byte_tokenizer import byte_tokenizer

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<image>"]
IMAGE_SIZE, PATCH_SIZE = 8, 4


def make_model_folder(folder: Path) -> Path:
    """Write configuration, tokenizer (a token a byte) and processor; an image takes four tokens."""
    folder.mkdir()
    tokenizer = byte_tokenizer(SPECIAL_TOKENS, first="<s>")
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, values in _files(tokenizer.get_vocab_size()).items():
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    return folder


def _files(vocab_size: int) -> dict[str, dict[str, object]]:
    layers = {"num_hidden_layers": 2, "num_attention_heads": 1}
    text = {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "eos_token_id": SPECIAL_TOKENS.index("</s>"),
        **layers,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 8,
        "intermediate_size": 8,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        **layers,
    }
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "torch_dtype": "float32",
        "image_token_index": SPECIAL_TOKENS.index("<image>"),
        "text_config": text,
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.3, 0.3, 0.3],
        "do_convert_rgb": True,
    }
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return {
        "config.json": config,
        "preprocessor_config.json": preprocessor,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **names},
    }
