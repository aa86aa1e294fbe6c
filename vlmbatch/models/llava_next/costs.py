"""What an image costs at the least: matrix products and attention. No torch."""

from __future__ import annotations

from vlmbatch.models.family import ImageFlops
from vlmbatch.models.llava.costs import tower_flops
from vlmbatch.models.llava_next.config import LlavaNextConfig
from vlmbatch.types import ImageGrid


def image_flops(config: LlavaNextConfig, grid: ImageGrid) -> ImageFlops:
    """Of as many passes through tower and projector as the image's pixels fill."""
    tiles = grid.num_bytes // (3 * config.vision.image_size**2)
    tower, projector = tower_flops(config)
    return ImageFlops(tower=tiles * tower, projector=tiles * projector)
