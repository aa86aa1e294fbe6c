"""What a model says of the shapes of features that it is given."""

from __future__ import annotations

from collections.abc import Callable

from vlmbatch.types import ImageGrid


def takes(shape: tuple[int, int]) -> Callable[[tuple[int, ...]], ImageGrid]:
    """As a model does whose images all have features of ``shape``."""

    def grid_of(found: tuple[int, ...]) -> ImageGrid:
        if found not in (shape, (1, *shape)):
            raise ValueError(f"shape {found}, expected {shape}")
        return ImageGrid(1, shape[0], shape[0], num_bytes=0)

    return grid_of
