"""Copies granules within the paged KV pool, over all layers at once.

Letters in shapes: P planes of the pool (keys and values of every layer), G granules of a plane,
R numbers of a granule, n granules to copy.
"""

from __future__ import annotations

from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu


@triton_on_gpu
def copy_granules(pool: Tensor, source: Tensor, target: Tensor) -> None:
    """Overwrite granules ``target`` of every plane with granules ``source``.

    ``pool``: (P, G, R), contiguous, written in place. ``source`` and ``target``: (n,) int64, with
    no granule in both.
    """
    for plane in pool:  # one at a time: the copies of a step may take gigabytes in all
        plane.index_copy_(0, target, plane.index_select(0, source))
