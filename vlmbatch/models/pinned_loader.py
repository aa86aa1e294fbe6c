"""Checkpoint tensors onto a GPU by way of pinned memory.

From pageable memory the driver copies piece by piece and holds up the caller; from pinned memory
the GPU fetches by itself, at the full rate of the bus, while the next piece is made ready.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import torch
from torch import Tensor

from vlmbatch.models.weight_slot import WeightSlot

_BUFFER_BYTES = 32 * 2**20  # enough to keep the bus busy, little to pin


class PinnedLoader:
    """Two pinned buffers in turns: one is filled while the GPU fetches the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._turns = cycle(
            [
                (
                    torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=True),
                    torch.cuda.Event(),  # type: ignore[no-untyped-call]
                )
                for _ in range(2)
            ]
        )

    def load(self, slot: WeightSlot, tensor: Tensor) -> None:
        """``slot.load`` of a tensor on the host, in the order of the current stream.

        The GPU converts the dtype: what crosses the bus is as small as the checkpoint has it.
        """
        for part, target in pieces(tensor, slot, _BUFFER_BYTES):
            target.load(self._send(part))

    def _send(self, part: Tensor) -> Tensor:
        if part.nbytes > _BUFFER_BYTES:  # a single row
            return part.to(self._device)
        buffer, fetched = next(self._turns)
        fetched.synchronize()
        staged = buffer[: part.nbytes].view(part.dtype).view(part.shape)
        staged.copy_(part)  # with all of torch's threads; reads the pages of a mapped file
        copy = staged.to(self._device, non_blocking=True)
        fetched.record()
        return copy


def pieces(tensor: Tensor, slot: WeightSlot, num_bytes: int) -> Iterator[tuple[Tensor, WeightSlot]]:
    """A checkpoint tensor and its slot in groups of rows, of at most ``num_bytes`` or one row.

    Rows outside this rank's share are not touched.
    """
    share = slot.share
    if share is not None and slot.dim == 0:
        tensor, slot = tensor.narrow(0, share.start, share.count), replace(slot, share=None)
    rows = max(1, num_bytes // max(1, tensor[:1].nbytes))
    yield from zip(torch.split(tensor, rows), slot.split(rows), strict=True)
