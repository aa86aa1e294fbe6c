"""Published configurations of Qwen-VL models, by short names, for runs with random weights."""

from __future__ import annotations

from typing import Any, NamedTuple

from vlmbatch.models.qwen_vl.config import QwenVLConfig

_TOKENS: dict[str, Any] = {
    "image_token_id": 151_655,
    "vision_start_token_id": 151_652,
    "vision_end_token_id": 151_653,
    "eos_token_id": 151_645,
    "torch_dtype": "bfloat16",
}


class _Decoder(NamedTuple):
    """``tied``: embeddings are the head's weights, and the vocabulary has no rows to fill it up."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    tied: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "rms_norm_eps": 1e-6,
        }


def _qwen2_vl(text: _Decoder) -> dict[str, Any]:
    return {
        "model_type": "qwen2_vl",
        **_qwen2_text(text),
        "max_position_embeddings": 32_768,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "num_heads": 16,
            "mlp_ratio": 4,
            "hidden_size": text.hidden_size,
            "patch_size": 14,
        },
    }


def _qwen2_5_vl(text: _Decoder, tower_intermediate: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl",
        **_qwen2_text(text),
        "max_position_embeddings": 128_000,
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": tower_intermediate,
            "num_heads": 16,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "out_hidden_size": text.hidden_size,
        },
    }


def _qwen2_text(text: _Decoder) -> dict[str, Any]:
    return {
        **_TOKENS,
        **text.fields,
        "vocab_size": 151_936 if text.tied else 152_064,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": text.tied,
    }


def _qwen3_vl(text: _Decoder, *, large_tower: bool) -> dict[str, Any]:
    large = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304}
    small = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}
    return {
        "model_type": "qwen3_vl",
        **_TOKENS,
        "tie_word_embeddings": text.tied,
        "text_config": {
            **text.fields,
            "vocab_size": 151_936,
            "head_dim": 128,
            "max_position_embeddings": 262_144,
            "rope_theta": 5e6,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20]},
        },
        "vision_config": {
            **(large if large_tower else small),
            "num_heads": 16,
            "patch_size": 16,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24] if large_tower else [5, 11, 17],
            "out_hidden_size": text.hidden_size,
        },
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2-vl-2b": _qwen2_vl(_Decoder(1536, 8960, 28, 12, 2, tied=True)),
    "qwen2-vl-7b": _qwen2_vl(_Decoder(3584, 18_944, 28, 28, 4)),
    "qwen2.5-vl-3b": _qwen2_5_vl(_Decoder(2048, 11_008, 36, 16, 2, tied=True), 3420),
    "qwen2.5-vl-7b": _qwen2_5_vl(_Decoder(3584, 18_944, 28, 28, 4), 3420),
    "qwen2.5-vl-32b": _qwen2_5_vl(_Decoder(5120, 27_648, 64, 40, 8), 3456),
    "qwen2.5-vl-72b": _qwen2_5_vl(_Decoder(8192, 29_568, 80, 64, 8), 3456),
    "qwen3-vl-2b": _qwen3_vl(_Decoder(2048, 6144, 28, 16, 8, tied=True), large_tower=False),
    "qwen3-vl-4b": _qwen3_vl(_Decoder(2560, 9728, 36, 32, 8, tied=True), large_tower=False),
    "qwen3-vl-8b": _qwen3_vl(_Decoder(4096, 12_288, 36, 32, 8), large_tower=True),
    "qwen3-vl-32b": _qwen3_vl(_Decoder(5120, 25_600, 64, 64, 8), large_tower=True),
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
