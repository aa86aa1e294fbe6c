"""Published LLaVA-NeXT and LLaVA-OneVision configurations, to run with random weights. No torch."""

from __future__ import annotations

from typing import Any

from vlmbatch.models.llava_next.config import LlavaNextConfig

_CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
_QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
}
_ONEVISION: dict[str, Any] = {
    "architectures": ["LlavaOnevisionForConditionalGeneration"],
    "model_type": "llava_onevision",
    "image_token_index": 151_646,
    "projector_hidden_act": "gelu",
    "vision_aspect_ratio": "anyres_max_9",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "eos_token_id": 151_645,
    "torch_dtype": "bfloat16",
    "vision_config": _SIGLIP,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llava-v1.6-mistral-7b": {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "image_token_index": 32_000,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "mistral",
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32_768,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1e6,
            "sliding_window": None,
            "vocab_size": 32_064,
        },
        "vision_config": _CLIP,
    },
    "llava-onevision-qwen2-0.5b": {
        **_ONEVISION,
        "tie_word_embeddings": True,
        "text_config": {
            **_QWEN2,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 152_000,
        },
    },
    "llava-onevision-qwen2-7b": {
        **_ONEVISION,
        "text_config": {
            **_QWEN2,
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152_128,
        },
    },
}


def processor_config(config: LlavaNextConfig) -> dict[str, Any]:
    """The family's published preprocessing."""
    side = config.vision.image_size
    common = {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_grid_pinpoints": [list(size) for size in config.pinpoints],
    }
    if config.model_type == "llava_onevision":
        return {
            **common,
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": side, "width": side},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }
    return {
        **common,
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
