"""Images resized together: what is to be made is said first, and all made by few kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from vlmbatch_kernels.resample import Lines, has_words
from vlmbatch_kernels.resample import resample as resample_lines

from vlmbatch.nvjpeg.resampling import shares_of


@dataclass(frozen=True, slots=True)
class Axis:
    """How the pixels of one axis are resized.

    ``span`` and ``resample``: see ``shares_of``. Of the span's line ``stored`` pixels from
    ``offset`` on are an image's own; ``mirrored``: they are stored from the last to the first.
    """

    span: tuple[int, float, float, int]
    resample: Image.Resampling
    stored: int
    offset: int = 0
    mirrored: bool = False

    @property
    def count(self) -> int:
        return self.span[3]


@dataclass(eq=False, slots=True)
class Resizing:
    """Pixels that ``make`` will have made of others, (3, down.count, across.count) uint8.

    ``source``: (3, down.stored, across.stored), until they are made. ``color`` surrounds it.
    """

    source: Pixels | None
    down: Axis
    across: Axis
    columns_first: bool
    color: tuple[int, int, int]
    made: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.down.count, self.across.count


Pixels = Tensor | Resizing


def make(pixels: Iterable[Pixels]) -> None:
    """Make all that is not made yet; they then lie in memory as (height, width, 3).

    Two kernels for those that are made of what is there, and two more for those made of these.

    Raises:
        MemoryError: the device has too little memory left; none is made.
    """
    levels = _levels(pixels)
    if not levels:
        return
    try:
        made = _made(levels)
    except torch.OutOfMemoryError as error:
        raise MemoryError from error
    for resizing, tensor in made.items():
        resizing.made, resizing.source = tensor, None  # the source's memory is wanted


def tensor_of(pixels: Pixels) -> Tensor:
    """As a tensor, for which they are made now if nobody has had them made.

    Raises:
        MemoryError: see ``make``.
    """
    if isinstance(pixels, Tensor):
        return pixels
    make([pixels])
    assert pixels.made is not None
    return pixels.made


def _levels(pixels: Iterable[Pixels]) -> list[list[Resizing]]:
    """What is not made yet, after what it is made of."""
    levels: list[list[Resizing]] = []
    depths: dict[Resizing, int] = {}

    def depth(each: Pixels) -> int:
        if isinstance(each, Tensor) or each.made is not None:
            return 0
        if each not in depths:
            assert each.source is not None
            depths[each] = below = depth(each.source) + 1
            if below > len(levels):
                levels.append([])
            levels[below - 1].append(each)
        return depths[each]

    for each in pixels:
        depth(each)
    return levels


def _made(levels: Iterable[Iterable[Resizing]]) -> dict[Resizing, Tensor]:
    made: dict[Resizing, Tensor] = {}
    weights = _Weights()
    passes: list[list[Lines]] = []
    for level in levels:
        first: list[Lines] = []
        second: list[Lines] = []
        for each in level:
            source = each.source
            if isinstance(source, Resizing):
                source = made[source] if source.made is None else source.made
            assert source is not None
            _, height, width = each.shape
            out = source.new_empty(height, width, 3).permute(2, 0, 1)
            columns, rows = source.transpose(1, 2), out.transpose(1, 2)
            if each.columns_first:
                part = source.new_empty(3, height, each.across.stored)
                first.append(weights.lines(columns, part.transpose(1, 2), each.down, each.color))
                second.append(weights.lines(part, out, each.across, each.color))
            else:
                part = source.new_empty(3, each.down.stored, width)
                first.append(weights.lines(source, part, each.across, each.color))
                second.append(weights.lines(part.transpose(1, 2), rows, each.down, each.color))
            made[each] = out
        passes += [first, second]
    resample_lines(weights.on(out.device), passes)
    return made


class _Weights:
    """First places and shares of all axes, one behind the other."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[np.int32]] = []
        self._starts: dict[tuple[Axis, bool], int] = {}
        self._length = 0

    def lines(self, pixels: Tensor, out: Tensor, axis: Axis, color: tuple[int, int, int]) -> Lines:
        key = axis, by_words = axis, has_words(pixels)
        weights = _axis_weights(*key)
        if key not in self._starts:
            self._starts[key] = self._length
            self._arrays.append(weights.reshape(-1))
            self._length += weights.size
        return Lines(pixels, out, self._starts[key], len(weights) - 1, color, by_words)

    def on(self, device: torch.device) -> Tensor:
        """A single copy, which nothing waits for: torch lends pinned memory to nobody else before
        the copies that read it are done."""
        host = torch.empty(self._length, dtype=torch.int32, pin_memory=device.type == "cuda")
        np.concatenate(self._arrays, out=host.numpy())
        return host.to(device, non_blocking=True)


@lru_cache(maxsize=128)  # photos of many cameras, and of the web
def _axis_weights(axis: Axis, by_words: bool) -> NDArray[np.int32]:
    """(1 + taps, count): first places among the stored pixels and shares, as ``Lines`` has them."""
    found = shares_of(*axis.span, axis.resample)
    first, shares = found.first - axis.offset, found.shares
    if axis.mirrored:
        first, shares = axis.stored - first - shares.shape[1], shares[:, ::-1]
    if by_words:
        first, shares = _from_words(first, shares)
    return np.concatenate((first[None], shares.T), dtype=np.int32)


def _from_words(
    first: NDArray[np.int32], shares: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The same with whole words of four: what is read before and behind them has no share."""
    before = first % 4
    count, taps = shares.shape
    padded = np.zeros((count, -(-(taps + int(before.max())) // 4) * 4), np.int32)
    np.put_along_axis(padded, before[:, None] + np.arange(taps), shares, axis=1)
    return first - before, padded
