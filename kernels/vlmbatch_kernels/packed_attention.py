"""Attention of packed sequences, each within itself, as vision towers attend (Dao, 2307.08691).

Letters in shapes: T tokens of all sequences, B sequences, H heads, D head size.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from vlmbatch_kernels.dispatch import has_triton, triton_on_gpu

_MIN_LENGTH = 256  # of the longest sequence; a tile has 128 queries


@triton_on_gpu
def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> Tensor:
    """Attend from every token to all tokens of its sequence.

    ``query``, ``key`` and ``value``: (T, H, D), their tokens any distance apart. ``cu_seqlens``:
    (B + 1,) int32, the sequences' offsets, of which ``max_seqlen`` is the greatest length.
    Returns (T, H, D).
    """
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    bounds = cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        rows = slice(start, end)
        scores = torch.einsum("lhd,mhd->hlm", query[rows].float(), key[rows].float()) * scale
        values = torch.einsum("hlm,mhd->lhd", scores.softmax(dim=-1), value[rows].float())
        out[rows] = values.to(out.dtype)
    return out


def is_faster(query: Tensor, max_seqlen: int) -> bool:
    """Whether the kernel is faster than a library's.

    Those round heads of 72 and 80 up to 96 or 128, of which Qwen-VL's and SigLIP's towers are.
    """
    if not query.is_cuda or not has_triton():
        return False
    from vlmbatch_kernels.persistent import is_hopper

    size = query.shape[2]
    fits = 64 < size <= 96 and size % 8 == 0 and query.element_size() == 2
    return fits and max_seqlen >= _MIN_LENGTH and is_hopper(query.device)
