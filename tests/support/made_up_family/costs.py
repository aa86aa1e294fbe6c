from __future__ import annotations

from made_up_family.config import MadeUpConfig
from vlmbatch.models.family import ImageFlops
from vlmbatch.types import ImageGrid


def image_flops(config: MadeUpConfig, grid: ImageGrid) -> ImageFlops:
    """As if the tower were its last layer alone."""
    return ImageFlops(2 * grid.num_tokens * config.tower_size * config.feature_size, 0)
