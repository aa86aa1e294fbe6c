"""How many multiprocessors there are, for kernels that launch a program for each."""

from __future__ import annotations

from functools import cache

import torch


@cache
def multiprocessors(device: torch.device) -> int:
    """Those of a GPU; 1 on a CPU, where Triton's interpreter runs one program."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
