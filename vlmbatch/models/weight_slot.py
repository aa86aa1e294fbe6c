"""Where a checkpoint's tensor goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from torch import Tensor
from vlmbatch_kernels.quantized_rows import plain_quantized_rows

from vlmbatch.models.parallel import Share


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """The place of one checkpoint tensor: ``target`` is a (view of a) parameter.

    ``share``: the part of dimension ``dim`` of the tensor that this rank takes. ``row_scales``:
    (rows, 1), filled with the target, whose rows are quantized. ``is_scale``: of numbers that are
    to be positive.
    """

    target: Tensor
    share: Share | None = None
    dim: int = 0
    row_scales: Tensor | None = None
    is_scale: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor in the checkpoint."""
        shape = list(self.target.shape)
        if self.share is not None:
            shape[self.dim] = self.share.total
        return tuple(shape)

    @property
    def stores_e4m3(self) -> bool:
        """Whether the checkpoint's tensor is in e4m3 itself."""
        return self.target.dtype == torch.float8_e4m3fn and self.row_scales is None

    def load(self, tensor: Tensor) -> None:
        """Copy this rank's part of a checkpoint tensor, converting its dtype."""
        if self.share is not None:
            tensor = tensor.narrow(self.dim, self.share.start, self.share.count)
        if self.row_scales is None:
            self.target.copy_(tensor)
            return
        rows = plain_quantized_rows(tensor)
        self.target.copy_(rows.values)
        self.row_scales.copy_(rows.scales)

    def split(self, rows: int) -> Iterator[WeightSlot]:
        """Slots for so many rows of the target each."""
        scales = repeat(None) if self.row_scales is None else torch.split(self.row_scales, rows)
        for target, own in zip(torch.split(self.target, rows), scales, strict=False):
            yield replace(self, target=target, row_scales=own)
