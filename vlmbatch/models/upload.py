"""Numbers from the host to the device, for which the host does not wait."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: Tensor | NDArray[np.generic], device: torch.device) -> Tensor:
    """``values``, of the host's, on ``device``; on a CPU they are where they belong.

    They go by way of pinned memory. From any other, CUDA's driver copies more than 64 kB only once
    the stream has done all that it was given before.
    https://docs.nvidia.com/cuda/cuda-runtime-api/api-sync-behavior.html
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
