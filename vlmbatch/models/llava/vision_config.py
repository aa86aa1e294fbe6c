"""The vision tower's part of a checkpoint's configuration. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from vlmbatch.models.json_fields import JsonFields

_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip_vision_model": {
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """A vision transformer tower."""

    model_type: Literal["clip_vision_model", "siglip_vision_model"]
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    hidden_act: str
    layer_norm_eps: float

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def has_class_token(self) -> bool:
        """Whether a token that is no patch comes first."""
        return self.model_type == "clip_vision_model"


def parse_vision_config(fields: JsonFields) -> VisionConfig:
    """Normalise a ``vision_config``.

    Raises:
        CheckpointError: a field is malformed or asks for something unsupported.
    """
    model_type = fields.choice("model_type", "clip_vision_model", _VISION_DEFAULTS)
    defaults = _VISION_DEFAULTS[model_type]
    if fields.integer("num_channels", 3) != 3:
        raise fields.error("num_channels", "3")
    hidden_size = fields.size("hidden_size", 768)
    num_heads = fields.size("num_attention_heads", 12)
    if hidden_size % num_heads:
        raise fields.error("hidden_size", f"a multiple of num_attention_heads ({num_heads})")
    image_size = _square(fields, "image_size", 224)
    patch_size = _square(fields, "patch_size", defaults["patch_size"])
    if image_size < patch_size:
        raise fields.error("image_size", f"at least the patch size {patch_size}")
    return VisionConfig(
        model_type=cast(Literal["clip_vision_model", "siglip_vision_model"], model_type),
        hidden_size=hidden_size,
        intermediate_size=fields.size("intermediate_size", 3072),
        num_layers=fields.layers("num_hidden_layers", 12),
        num_heads=num_heads,
        image_size=image_size,
        patch_size=patch_size,
        hidden_act=fields.activation("hidden_act", defaults["hidden_act"]),
        layer_norm_eps=fields.number("layer_norm_eps", defaults["layer_norm_eps"]),
    )


def _square(fields: JsonFields, name: str, default: int) -> int:
    sides = fields.integers(name, (default,))
    if len(set(sides)) != 1 or len(sides) > 2 or sides[0] < 1:
        raise fields.error(name, "one size above 0 for height and width")
    return sides[0]
