"""Batches of images from the host to the device, on a stream of their own.

torch keeps pinned memory that is given back, and hands it out again once the copies from it are
done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ImageUpload:
    """Copies overlap with the previous steps on the device; a CPU's are where they belong."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> list[Tensor]:
        """Images (H_i, W_i, 3), as views of one tensor."""
        batch = self._batch(sum(image.size for image in images), torch.uint8)
        np.concatenate([image.reshape(-1) for image in images], out=batch.numpy())
        return self._send(batch, [image.shape for image in images])

    def features(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Features (tokens_i, C), as views of one tensor in a dtype that holds all their values."""
        dtype = reduce(torch.promote_types, (image.dtype for image in images))
        batch = self._batch(sum(image.numel() for image in images), dtype)
        torch.cat([image.flatten() for image in images], out=batch)
        return self._send(batch, [image.shape for image in images])

    def _batch(self, size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, pin_memory=self._stream is not None)

    def _send(self, batch: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """What lies in ``batch`` one behind the other, as the current stream will find it."""
        parts = torch.split(self._sent(batch), [math.prod(shape) for shape in shapes])
        return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]

    def _sent(self, batch: Tensor) -> Tensor:
        if self._stream is None:
            return batch
        with torch.cuda.stream(self._stream):
            sent = batch.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        sent.record_stream(current)
        return sent
