"""What an image costs at the least: matrix products and attention. No torch."""

from __future__ import annotations

from vlmbatch.models.family import ImageFlops
from vlmbatch.models.qwen_vl.config import QwenVLConfig
from vlmbatch.models.qwen_vl.packing import lay_out
from vlmbatch.types import ImageGrid


def image_flops(config: QwenVLConfig, grid: ImageGrid) -> ImageFlops:
    """Of the tower, and of the mergers as its projector. A still's patches are one frame."""
    vision = config.vision
    size = vision.hidden_size
    patches = grid.num_tokens * vision.merge_size**2
    matrices = 3 if vision.kind == "qwen2_5_vl" else 2
    weights = size * (4 * size + matrices * vision.intermediate_size)
    windows = lay_out(grid.height, grid.width, vision.merge_size, vision.window).windows
    pairs = sum(
        sum(length**2 for length in windows) if vision.attends_in_windows(layer) else patches**2
        for layer in range(vision.num_layers)
    )
    embedding = 3 * vision.patch_size**2 * size
    merged = size * vision.merge_size**2
    merger = merged * (merged + vision.out_hidden_size)
    return ImageFlops(
        tower=2 * patches * (vision.num_layers * weights + embedding) + 4 * pairs * size,
        projector=2 * grid.num_tokens * (1 + len(vision.deep_layers)) * merger,
    )
