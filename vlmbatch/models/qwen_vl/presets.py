"""Published configurations of Qwen-VL models, by short names, for runs with random weights."""

from __future__ import annotations

from typing import Any

from vlmbatch.models.qwen_vl.config import QwenVLConfig

_TOKENS: dict[str, Any] = {
    "image_token_id": 151_655,
    "vision_start_token_id": 151_652,
    "vision_end_token_id": 151_653,
    "eos_token_id": 151_645,
    "torch_dtype": "bfloat16",
}
_QWEN2_7B: dict[str, Any] = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": False,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2-vl-7b": {
        "model_type": "qwen2_vl",
        **_TOKENS,
        **_QWEN2_7B,
        "max_position_embeddings": 32_768,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "num_heads": 16,
            "mlp_ratio": 4,
            "hidden_size": 3584,
            "patch_size": 14,
        },
    },
    "qwen2.5-vl-7b": {
        "model_type": "qwen2_5_vl",
        **_TOKENS,
        **_QWEN2_7B,
        "max_position_embeddings": 128_000,
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "out_hidden_size": 3584,
        },
    },
    "qwen3-vl-8b": {
        "model_type": "qwen3_vl",
        **_TOKENS,
        "tie_word_embeddings": False,
        "text_config": {
            "vocab_size": 151_936,
            "hidden_size": 4096,
            "intermediate_size": 12_288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262_144,
            "rms_norm_eps": 1e-6,
            "rope_theta": 5e6,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20]},
        },
        "vision_config": {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "patch_size": 16,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24],
            "out_hidden_size": 4096,
        },
    },
}


def processor_config(config: QwenVLConfig) -> dict[str, Any]:
    """The family's published preprocessing."""
    qwen3 = config.vision.kind == "qwen3_vl"
    least, most = (65_536, 16_777_216) if qwen3 else (3136, 12_845_056)
    clip = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": least, "longest_edge": most},
        "patch_size": config.vision.patch_size,
        "temporal_patch_size": config.vision.temporal_patch_size,
        "merge_size": config.vision.merge_size,
        **({"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if qwen3 else clip),
    }
