"""Batches of images from the host to the device, on a stream of their own.

torch keeps pinned memory that is given back, and hands it out again once the copies from it are
done.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ImageUpload:
    """Copies go on while the device computes the steps before; a CPU's are where they belong."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Images (H, W, 3) as (N, H, W, 3)."""
        batch = self._batch(len(images), images[0].shape, torch.uint8)
        np.stack(images, out=batch.numpy())
        return self._send(batch)

    def features(self, images: Sequence[Tensor]) -> Tensor:
        """Features (tokens, C) as (N, tokens, C), in a dtype that holds the values of all."""
        dtype = reduce(torch.promote_types, (image.dtype for image in images))
        batch = self._batch(len(images), images[0].shape, dtype)
        return self._send(torch.stack(list(images), out=batch))

    def _batch(self, count: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty((count, *shape), dtype=dtype, pin_memory=self._stream is not None)

    def _send(self, batch: Tensor) -> Tensor:
        """What the current stream will find there."""
        if self._stream is None:
            return batch
        with torch.cuda.stream(self._stream):
            sent = batch.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        sent.record_stream(current)
        return sent
