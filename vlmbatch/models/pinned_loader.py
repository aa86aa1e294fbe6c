"""Checkpoint tensors onto a GPU by way of pinned memory.

From pageable memory the driver copies piece by piece and holds up the caller; from pinned memory
the GPU fetches by itself, at the full rate of the bus. Threads read the files into it: one alone is
slower than the bus even from the page cache, and a disk or a network wants several requests at a
time. A mapped file would be read page by page, as each is touched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle

import torch
from torch import Tensor

from vlmbatch.models.stored_tensor import StoredTensor
from vlmbatch.models.weight_slot import WeightSlot

_BUFFER_BYTES = 16 * 2**20  # enough to keep the bus busy, little to pin
_NUM_BUFFERS = 8  # each with a thread that fills it


class _Buffer:
    """Memory for one piece at a time, pinned where a GPU fetches it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        on_gpu = device.type == "cuda"
        self._memory = torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=on_gpu)
        self._fetched = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    def fill(self, piece: StoredTensor) -> Tensor:
        """Bytes of a piece, once what was here before has been fetched. Called on any thread."""
        if self._fetched is not None:
            self._fetched.synchronize()
        memory = self._memory
        if piece.num_bytes > len(memory):  # a single row
            memory = torch.empty(piece.num_bytes, dtype=torch.uint8)
        piece.read_into(memory.numpy()[: piece.num_bytes].data)
        return memory[: piece.num_bytes]

    def send(self, filled: Tensor, piece: StoredTensor) -> Tensor:
        """The piece on the device, in the order of the current stream."""
        copy = filled.to(self._device, non_blocking=True).view(piece.dtype).view(piece.shape)
        if self._fetched is not None:
            self._fetched.record()
        return copy


def load_from_files(
    tensors: Iterable[tuple[StoredTensor, WeightSlot]], device: torch.device
) -> None:
    """``slot.load`` of every tensor, in the order of the current stream.

    The GPU converts the dtype: what crosses the bus is as small as the checkpoint has it.

    Raises:
        CheckpointError: a file cannot be read, or has become shorter.
    """
    buffers = [_Buffer(device) for _ in range(_NUM_BUFFERS)]
    with ThreadPoolExecutor(_NUM_BUFFERS, thread_name_prefix="weights") as threads:
        reading: deque[tuple[_Buffer, StoredTensor, WeightSlot, Future[Tensor]]] = deque()

        def load_oldest() -> None:
            buffer, piece, slot, filled = reading.popleft()
            slot.load(buffer.send(filled.result(), piece))

        for buffer, (piece, slot) in zip(cycle(buffers), _all_pieces(tensors)):
            if len(reading) == len(buffers):  # ``buffer`` is that of the oldest
                load_oldest()
            reading.append((buffer, piece, slot, threads.submit(buffer.fill, piece)))
        while reading:
            load_oldest()


def _all_pieces(
    tensors: Iterable[tuple[StoredTensor, WeightSlot]],
) -> Iterator[tuple[StoredTensor, WeightSlot]]:
    for tensor, slot in tensors:
        yield from pieces(tensor, slot, _BUFFER_BYTES)


def pieces(
    tensor: StoredTensor, slot: WeightSlot, num_bytes: int
) -> Iterator[tuple[StoredTensor, WeightSlot]]:
    """A checkpoint tensor and its slot in groups of rows, of at most ``num_bytes`` or one row.

    Rows outside this rank's share are left out.
    """
    share = slot.share
    if share is not None and slot.dim == 0:
        tensor, slot = tensor.rows(share.start, share.count), replace(slot, share=None)
    rows = max(1, num_bytes // max(1, tensor.row_bytes))
    yield from zip(tensor.split(rows), slot.split(rows), strict=True)
