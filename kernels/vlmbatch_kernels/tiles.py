"""How many tiles of keys and values a multiprocessor's shared memory can hold in flight."""

from __future__ import annotations

from functools import cache

import torch

_MAX_STAGES = 3  # more ask for no more bytes at a time than memory can deliver


def num_stages(tile_bytes: int, other_bytes: int, device: torch.device) -> int:
    """Triton's ``num_stages``: tiles of ``tile_bytes`` in flight, at most three.

    ``other_bytes`` are held beside them; the tile being read takes no memory of its own. GPUs
    differ: a program may take 227 KiB of a Hopper multiprocessor, 99 KiB of an Ada's.
    """
    if device.type != "cuda":
        return 1  # Triton's interpreter, which keeps nothing in flight
    free = _shared_memory(device) - other_bytes
    return max(1, min(_MAX_STAGES, 1 + free // tile_bytes))


@cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may take."""
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]
