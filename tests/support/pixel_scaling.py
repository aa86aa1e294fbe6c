"""What a LLaVA model takes from its image processor: pixels to the tower's input, by channel."""

from __future__ import annotations

from types import SimpleNamespace

from vlmbatch.types import ImageGrid

GRID = ImageGrid(1, 1, 1, 1)  # where nothing is counted


def scaling(
    scale: tuple[float, ...] = (1.0, 1.0, 1.0), bias: tuple[float, ...] = (0.0, 0.0, 0.0)
) -> SimpleNamespace:
    return SimpleNamespace(scale=scale, bias=bias)
