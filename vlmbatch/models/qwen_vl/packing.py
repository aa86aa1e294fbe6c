"""Images of any size as one sequence of patches: in which order, and who attends to whom. No torch.

The patches of a token follow each other, and so do the tokens of an attention window.
Letters in shapes: T patches of all images, M tokens of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlmbatch.models.qwen_vl.vision_config import VisionConfig


class Layout(NamedTuple):
    """One image. ``rows`` and ``columns``: of each patch in the image, in the tower's order.

    ``tokens``: the place in the tower's order of each token, from left to right and top to bottom.
    ``windows``: patches in each window, one that is the whole image where there are none.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    tokens: NDArray[np.int64]
    windows: list[int]


@lru_cache(maxsize=32)
def lay_out(height: int, width: int, merge_size: int, window: int | None) -> Layout:
    """The layout of an image of ``height`` x ``width`` tokens."""
    down, across = (index.ravel() for index in np.indices((height, width)))
    owner = np.zeros(height * width, np.int64)
    if window is not None:
        owner = down // window * -(-width // window) + across // window
    order = np.argsort(owner, kind="stable")
    within = np.arange(merge_size**2)
    rows = down[order, None] * merge_size + within // merge_size
    columns = across[order, None] * merge_size + within % merge_size
    windows = (np.bincount(owner) * merge_size**2).tolist()
    return Layout(rows.ravel(), columns.ravel(), np.argsort(order), windows)


@dataclass(frozen=True, slots=True)
class Packing:
    """Images behind each other.

    ``patches``: (T,), where each patch lies among those that come image by image, from left to
    right and top to bottom. ``places``: (2, T), row and column of each in its image. ``tokens``:
    (M,), see ``Layout``. ``lengths`` of the images and ``windows``: patches of each sequence.
    """

    patches: NDArray[np.int64]
    places: NDArray[np.int64]
    tokens: NDArray[np.int64]
    lengths: list[int]
    windows: list[int]
    sizes: list[tuple[int, int]]  # height and width of each image, in patches

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], config: VisionConfig) -> Packing:
        """Of images of these heights and widths, in patches."""
        merge = config.merge_size
        layouts = [
            lay_out(height // merge, width // merge, merge, config.window)
            for height, width in sizes
        ]
        lengths = [height * width for height, width in sizes]
        starts = np.cumsum([0, *lengths[:-1]])
        patches = [
            start + layout.rows * width + layout.columns
            for start, layout, (_, width) in zip(starts, layouts, sizes, strict=True)
        ]
        tokens = [
            start // merge**2 + layout.tokens for start, layout in zip(starts, layouts, strict=True)
        ]
        return cls(
            np.concatenate(patches),
            np.concatenate([np.stack(layout[:2]) for layout in layouts], axis=1),
            np.concatenate(tokens),
            lengths,
            [length for layout in layouts for length in layout.windows],
            list(sizes),
        )

    def interpolation(self, config: VisionConfig) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Which learned positions each patch takes, and how much of each; both (T, 4).

        The table is stretched over each image so that corners meet corners.
        """
        merge, side = config.merge_size, config.position_side
        each = [
            _interpolation(height // merge, width // merge, merge, config.window, side)
            for height, width in self.sizes
        ]
        return np.concatenate([e[0] for e in each]), np.concatenate([e[1] for e in each])


@lru_cache(maxsize=32)
def _interpolation(
    height: int, width: int, merge_size: int, window: int | None, side: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of an image of ``height`` x ``width`` tokens, in a table of ``side`` x ``side``."""
    layout = lay_out(height, width, merge_size, window)
    down, across = _stretched(height * merge_size, side), _stretched(width * merge_size, side)
    low_row, high_row, row_share = (axis[layout.rows] for axis in down)
    low_column, high_column, share = (axis[layout.columns] for axis in across)
    indices = [
        row * side + column for row in (low_row, high_row) for column in (low_column, high_column)
    ]
    weights = [row * column for row in (1 - row_share, row_share) for column in (1 - share, share)]
    return np.stack(indices, axis=1), np.stack(weights, axis=1)


def _stretched(
    length: int, side: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each of ``length`` places its neighbours among ``side``, and the share of the second."""
    at = np.arange(length, dtype=np.float32) * np.float32(side - 1) / np.float32(max(length - 1, 1))
    low = at.astype(np.int64)
    return low, np.minimum(low + 1, side - 1), at - low.astype(np.float32)
