"""``copy_granules`` in Triton: one launch, and nothing is held in between."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096  # numbers of one program


@triton.jit
def _copy_granules(
    pool: tl.tensor,
    source: tl.tensor,
    target: tl.tensor,
    plane_size: tl.tensor,
    granule_size: tl.tensor,
    BLOCK: tl.constexpr,
):
    plane = pool + tl.program_id(1).to(tl.int64) * plane_size
    from_granule = tl.load(source + tl.program_id(0)) * granule_size
    to_granule = tl.load(target + tl.program_id(0)) * granule_size
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = at < granule_size
    tl.store(plane + to_granule + at, tl.load(plane + from_granule + at, mask=inside), mask=inside)


def copy_granules(pool: Tensor, source: Tensor, target: Tensor) -> None:
    planes, _, size = pool.shape
    assert pool.is_contiguous() and source.is_contiguous() and target.is_contiguous()
    assert source.shape == target.shape and source.ndim == 1, f"{source.shape}, {target.shape}"
    grid = (source.shape[0], planes, triton.cdiv(size, _BLOCK))
    _copy_granules[grid](pool, source, target, pool.stride(0), size, BLOCK=_BLOCK, num_warps=8)
