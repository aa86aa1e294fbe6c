"""How many multiprocessors a kernel has to itself, for kernels that launch a program for each.

Streams may be bound to a part of a GPU. Whoever makes such a stream says so here, once.
"""

from __future__ import annotations

from functools import cache

import torch

_PARTS: dict[int, int] = {}  # multiprocessors of streams that have not all, by the stream's handle


def bind(stream: torch.cuda.Stream, count: int) -> None:
    """Note that kernels on ``stream`` run on ``count`` multiprocessors."""
    _PARTS[stream.cuda_stream] = count


def multiprocessors(device: torch.device) -> int:
    """Those of the current stream; 1 on a CPU, where Triton's interpreter runs one program."""
    if device.type != "cuda":
        return 1
    return _PARTS.get(torch.cuda.current_stream(device).cuda_stream) or _all(device)


@cache
def _all(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
