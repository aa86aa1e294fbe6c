"""How many multiprocessors a stream may use, where that is not all of them."""

from __future__ import annotations

import torch

_LIMITS: dict[int, int] = {}  # by the stream's handle; such streams live as long as the process


def limit_stream(stream: torch.cuda.Stream, num_sms: int) -> None:
    """Note that ``stream`` belongs to a partition of ``num_sms`` multiprocessors."""
    _LIMITS[stream.cuda_stream] = num_sms


def current_limit() -> int | None:
    """Multiprocessors of the current stream's partition; None where it may use the whole GPU."""
    return _LIMITS.get(torch.cuda.current_stream().cuda_stream) if _LIMITS else None
