"""The configuration of a LLaVA-NeXT or LLaVA-OneVision checkpoint. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.llava.config import TowerConfig, check_architecture, parse_tower_config
from vlmbatch.models.llava.vision_config import VisionConfig
from vlmbatch.models.llava_next.tiling import Size

_ARCHITECTURES = {
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
}
_PINPOINTS = {
    "llava_next": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "llava_onevision": [
        [height, width] for height in range(384, 2305, 384) for width in range(384, 2305, 384)
    ],
}
_ONEVISION: dict[str, Any] = {  # what its config leaves out
    "text_type": "qwen2",
    "vision_defaults": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
    "image_token_id": 151_646,
    "feature_layer": -1,
    "strategy": "full",
}
_MAX_PINPOINTS = 256  # published models have up to 36
_MAX_PIXELS = 2**26
_MAX_SIDE = 4096  # in features; published models have up to 162


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaNextConfig(TowerConfig):
    """A model of images that are cut into tiles, each of which fills the tower.

    ``pinpoints``: sizes that tiles can make up, in pixels. ``max_tiles``: how many tiles' worth of
    features an image has at about the most; None for no limit.
    """

    pinpoints: tuple[Size, ...]
    max_tiles: int | None

    @property
    def patches(self) -> int:
        """Along a side of a tile."""
        return self.vision.image_size // self.vision.patch_size

    @property
    def max_features(self) -> int | None:
        """``max_tiles`` in features."""
        return None if self.max_tiles is None else self.max_tiles * self.patches**2

    @property
    def feature_size(self) -> int:
        """Numbers in one stored feature: what the decoder is given."""
        return self.text.hidden_size


def parse_config(top: JsonFields, folder: Path) -> LlavaNextConfig:
    """See ``Family.parse_config``."""
    kind = top.choice("model_type", "", _ARCHITECTURES)
    check_architecture(top, _ARCHITECTURES[kind])
    fields = parse_tower_config(top, folder, **(_ONEVISION if kind == "llava_onevision" else {}))
    vision = fields["vision"]
    if fields["drop_class_token"] != vision.has_class_token:
        expected = "default" if vision.has_class_token else "full"
        raise top.error(
            "vision_feature_select_strategy", f"{expected!r}, as for a {vision.model_type}"
        )
    return LlavaNextConfig(
        **fields,
        pinpoints=parse_pinpoints(top, kind, vision),
        max_tiles=_max_tiles(top) if kind == "llava_onevision" else None,
    )


def parse_pinpoints(fields: JsonFields, kind: str, vision: VisionConfig) -> tuple[Size, ...]:
    """``image_grid_pinpoints``: (height, width) each, of tiles that fill the tower.

    Raises:
        CheckpointError: none, too many, or one that no tiles make up.
    """
    name, tile = "image_grid_pinpoints", vision.image_size
    values = fields.values.get(name)
    values = _PINPOINTS[kind] if values is None else values
    if not isinstance(values, list) or not 1 <= len(values) <= _MAX_PINPOINTS:
        raise fields.error(name, f"a list of 1 to {_MAX_PINPOINTS} sizes")
    for pair in values:
        if not isinstance(pair, list) or [type(side) for side in pair] != [int, int]:
            raise fields.error(name, "sizes of two integers, height and width")
        if min(pair) < 1 or any(side % tile for side in pair):
            raise fields.error(name, f"multiples of the vision tower's {tile} pixels, not {pair}")
        if pair[0] * pair[1] > _MAX_PIXELS:
            raise fields.error(name, f"sizes of at most {_MAX_PIXELS} pixels, not {pair}")
        if max(pair) // vision.patch_size > _MAX_SIDE:
            raise fields.error(name, f"at most {_MAX_SIDE} patches along a side, not {pair}")
    return tuple(Size(*pair) for pair in values)


def _max_tiles(top: JsonFields) -> int:
    name = "vision_aspect_ratio"
    found = re.fullmatch(r"anyres_max_(\d{1,4})", top.string(name, "anyres_max_9"))
    if found is None or int(found[1]) == 0:
        raise top.error(name, "anyres_max_ and a number of tiles above 0")
    return int(found[1])
