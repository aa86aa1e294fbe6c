"""What our own matrix products in Triton share.

A program for each multiprocessor computes one tile of the product after another: what the next one
reads is on its way while the one before is being written. They are worth it where what is done to
the product before it is written saves a pass over memory; the product alone is as fast as cuBLAS's.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

MIN_ROWS = 1536  # with fewer, the library's product and another kernel behind it are as fast
GROUP = 16  # tiles below each other that run together: they share what is read of the weight
STAGES = 4  # loads in flight
ALIGNMENT = 8  # numbers of 2 bytes: rows begin at multiples of 16, as the copy engine asks
_HOPPER = (9, 0)  # tiles are sized for its shared memory and registers


@cache
def is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) == _HOPPER


@triton.jit
def place(tile: tl.tensor, num_m: tl.tensor, num_n: tl.tensor, GROUP: tl.constexpr):
    """Row and column of a tile: ``GROUP`` rows are gone through before the next columns."""
    per_group = GROUP * num_n
    first = tile // per_group * GROUP
    rows = tl.minimum(num_m - first, GROUP)
    return first + tile % per_group % rows, tile % per_group // rows
