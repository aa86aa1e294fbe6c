"""What an image costs at the least: matrix products and attention. No torch."""

from __future__ import annotations

from vlmbatch.models.family import ImageFlops
from vlmbatch.models.llava.config import LlavaConfig, TowerConfig
from vlmbatch.types import ImageGrid


def image_flops(config: LlavaConfig, grid: ImageGrid) -> ImageFlops:
    """Of one pass through tower and projector."""
    return tower_flops(config)


def tower_flops(config: TowerConfig) -> ImageFlops:
    """Of what fills the tower once, up to the last layer whose features are used."""
    vision, hidden_size = config.vision, config.text.hidden_size
    tokens = vision.num_patches + vision.has_class_token
    layer_weights = vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    layer = 2 * tokens * layer_weights + 4 * tokens**2 * vision.hidden_size
    patches = 2 * vision.num_patches * 3 * vision.patch_size**2 * vision.hidden_size
    projector_weights = (config.tower_feature_size + hidden_size) * hidden_size
    return ImageFlops(
        tower=max(config.feature_layers) * layer + patches,
        projector=2 * config.tower_tokens * projector_weights,
    )
