"""Where the patches and tokens of pictures of every size lie, as tables that a batch looks up.

Letters in shapes: G sizes of pictures, T image tokens at most, P = 4 T patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from qwen_checkpoint import MAX_IMAGE_TOKENS, MERGE
from torch import Tensor

MAX_SIDE = 16  # image tokens along a side of the pictures that the model is trained on
SIZES = [
    (height, width)
    for height in range(1, MAX_SIDE + 1)
    for width in range(1, MAX_SIDE + 1)
    if height * width <= MAX_IMAGE_TOKENS
]


@dataclass(frozen=True)
class Layout:
    """One row for each of ``SIZES``; what lies beyond a picture's end is not valid."""

    valid: Tensor  # (G, T) bool
    places: Tensor  # (G, T, 2) row and column of each token
    extent: Tensor  # (G,) positions that a picture takes in the text
    patch_places: Tensor  # (G, P, 2) row and column of each patch, in the tower's order
    interpolation: Tensor  # (G, P, side**2) how much of each learned position a patch takes

    @classmethod
    def of(cls, side: int, device: torch.device) -> Layout:
        """For a learned table of ``side`` x ``side`` positions."""
        num_patches = MAX_IMAGE_TOKENS * MERGE**2
        valid = torch.zeros(len(SIZES), MAX_IMAGE_TOKENS, dtype=torch.bool)
        places = torch.zeros(len(SIZES), MAX_IMAGE_TOKENS, 2, dtype=torch.long)
        patch_places = torch.zeros(len(SIZES), num_patches, 2, dtype=torch.long)
        interpolation = torch.zeros(len(SIZES), num_patches, side, side)
        inner = torch.cartesian_prod(torch.arange(MERGE), torch.arange(MERGE))
        for index, (height, width) in enumerate(SIZES):
            tokens = torch.cartesian_prod(torch.arange(height), torch.arange(width))
            patches = (MERGE * tokens[:, None] + inner).flatten(0, 1)
            valid[index, : len(tokens)] = True
            places[index, : len(tokens)] = tokens
            patch_places[index, : len(patches)] = patches
            rows, columns = (
                _stretched(MERGE * length, side)[patches[:, axis]]
                for axis, length in enumerate((height, width))
            )
            interpolation[index, : len(patches)] = rows[:, :, None] * columns[:, None]
        extent = torch.tensor([max(size) for size in SIZES])
        tables = (valid, places, extent, patch_places, interpolation.flatten(2))
        return cls(*(table.to(device) for table in tables))


def _stretched(length: int, side: int) -> Tensor:
    """How much each of ``length`` places takes of ``side`` ones, ends on ends: (length, side)."""
    at = torch.arange(length) * (side - 1) / max(length - 1, 1)
    return (1 - (at[:, None] - torch.arange(side)).abs()).clamp(min=0)
