"""The vision tower's part of a Qwen-VL checkpoint's configuration. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal, cast

from vlmbatch.models.json_fields import MAX_SIZE, JsonFields

Kind = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]

_DEFAULTS: dict[str, dict[str, Any]] = {  # by the model_type of the whole checkpoint
    "qwen2_vl": {"depth": 32, "hidden_act": "quick_gelu", "patch_size": 14},
    "qwen2_5_vl": {
        "depth": 32,
        "hidden_size": 3584,
        "intermediate_size": 3420,
        "hidden_act": "silu",
        "patch_size": 14,
        "out_hidden_size": 3584,
    },
    "qwen3_vl": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "hidden_act": "gelu_pytorch_tanh",
        "patch_size": 16,
        "out_hidden_size": 3584,
    },
}


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """A tower over packed images of any size, of which ``merge_size`` squared patches make a token.

    ``window``: tokens along a side of an attention window, None where all layers attend within the
    whole image, as those of ``full_layers`` always do. ``position_side``: positions along a side of
    a learned table, 0 for none. ``deep_layers``: behind which the deep levels are taken.
    """

    kind: Kind
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    hidden_act: str
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    out_hidden_size: int
    rope_theta: float = 10_000.0
    window: int | None = None
    full_layers: tuple[int, ...] = ()
    position_side: int = 0
    deep_layers: tuple[int, ...] = ()

    @property
    def factor(self) -> int:
        """Pixels along a side of what becomes one token."""
        return self.patch_size * self.merge_size

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def attends_in_windows(self, layer: int) -> bool:
        return self.window is not None and layer not in self.full_layers


def parse_vision_config(kind: str, fields: JsonFields) -> VisionConfig:
    """Normalise a ``vision_config`` of a checkpoint whose ``model_type`` is ``kind``.

    Raises:
        CheckpointError: a field is malformed or asks for something unsupported.
    """
    fields = JsonFields(_DEFAULTS[kind] | fields.given, fields.where)
    for name in ("in_channels", "in_chans"):
        if fields.integer(name, 3) != 3:
            raise fields.error(name, "3")
    if kind == "qwen2_vl":  # its hidden_size is the decoder's
        name, out_hidden_size = "embed_dim", fields.size("hidden_size", 3584)
        hidden_size = fields.size(name, 1280)
        intermediate_size = int(hidden_size * fields.number("mlp_ratio", 4))
        if not 1 <= intermediate_size <= MAX_SIZE:
            raise fields.error("mlp_ratio", f"1 to {MAX_SIZE} in all, times embed_dim")
    else:
        name, out_hidden_size = "hidden_size", fields.size("out_hidden_size", 3584)
        hidden_size = fields.size(name, 0)
        intermediate_size = fields.size("intermediate_size", 0)
    num_heads = fields.size("num_heads", 16)
    if hidden_size % (4 * num_heads):
        raise fields.error(name, f"a multiple of four times num_heads ({num_heads})")
    num_layers = fields.layers("depth", 0)
    patch_size = fields.size("patch_size", 0)
    merge_size = fields.size("spatial_merge_size", 2)
    rope = fields.section("rope_parameters")
    deep_layers = () if kind != "qwen3_vl" else _deep_layers(fields, num_layers)
    return VisionConfig(
        kind=cast(Kind, kind),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_act=fields.activation("hidden_act", ""),
        patch_size=patch_size,
        merge_size=merge_size,
        temporal_patch_size=fields.size("temporal_patch_size", 2),
        out_hidden_size=out_hidden_size,
        rope_theta=10_000.0 if rope is None else rope.number("rope_theta", 10_000.0),
        window=_window(fields, patch_size * merge_size) if kind == "qwen2_5_vl" else None,
        full_layers=fields.integers("fullatt_block_indexes", (7, 15, 23, 31)),
        position_side=_position_side(fields) if kind == "qwen3_vl" else 0,
        deep_layers=deep_layers,
    )


def _window(fields: JsonFields, factor: int) -> int:
    size = fields.integer("window_size", 112)
    if size < factor:
        raise fields.error("window_size", f"at least the {factor} pixels of a token")
    return size // factor


def _position_side(fields: JsonFields) -> int:
    name = "num_position_embeddings"
    count = fields.integer(name, 2304)
    if isqrt(count) ** 2 != count:
        raise fields.error(name, "a square number")
    return isqrt(count)


def _deep_layers(fields: JsonFields, num_layers: int) -> tuple[int, ...]:
    name = "deepstack_visual_indexes"
    layers = fields.integers(name, (8, 16, 24))
    if list(layers) != sorted({layer for layer in layers if 0 <= layer < num_layers}):
        raise fields.error(name, f"layers from 0 to {num_layers - 1} in ascending order")
    return layers
