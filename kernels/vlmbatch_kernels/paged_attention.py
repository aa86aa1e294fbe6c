"""Attention of ragged queries over a paged pool of keys and values (Dao, arXiv:2307.08691).

Letters in shapes: T tokens of a step, B sequences, H query heads, K key-value heads, D head size,
S slots of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu
from vlmbatch_kernels.paged_heads import read_heads


@dataclass(frozen=True, slots=True)
class PageLayout:
    """A page holds ``page_size`` tokens; block tables count its first slot in ``granule`` slots."""

    page_size: int
    granule: int


@dataclass(frozen=True, slots=True)
class Scores:
    """What becomes of a query's products with keys before the softmax.

    ``window`` counts the keys that a query sees, its own included; 0 is no limit. ``softcap`` 0 is
    none.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0


@triton_on_gpu
def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    seqlens_k: Tensor,
    max_seqlen_q: int,
    layout: PageLayout,
    scores: Scores,
    scales: Tensor | None = None,
) -> Tensor:
    """Attend causally from each sequence's last queries to all its keys, its own included.

    ``query``: (T, H, D). ``key_cache`` and ``value_cache``: (S, K, D). ``block_table``: (B, pages)
    int32. ``cu_seqlens_q``: (B + 1,) and ``seqlens_k``: (B,) int32. The pool needs ``page_size``
    slots behind its last; what they hold is never used. ``scales``: (2, K) float32, of keys and of
    values in e4m3. Returns (T, H, D), of which the rows outside ``cu_seqlens_q`` hold anything.
    """
    out = torch.empty_like(query)
    group = query.shape[1] // key_cache.shape[1]
    key_scales, value_scales = (None, None) if scales is None else scales
    bounds = cu_seqlens_q.tolist()
    for sequence, total in enumerate(seqlens_k.tolist()):
        token = torch.arange(total, device=query.device)
        page = block_table[sequence].long()[token // layout.page_size]
        slots = page * layout.granule + token % layout.page_size
        key = read_heads(key_cache[slots], key_scales, torch.float32)
        key = key.repeat_interleave(group, dim=1)
        value = read_heads(value_cache[slots], value_scales, torch.float32)
        value = value.repeat_interleave(group, dim=1)
        rows = slice(bounds[sequence], bounds[sequence + 1])
        products = torch.einsum("lhd,mhd->hlm", query[rows].float(), key) * scores.scale
        if scores.softcap:
            products = scores.softcap * torch.tanh(products / scores.softcap)
        position = torch.arange(total - query[rows].shape[0], total, device=query.device)[:, None]
        hidden = token > position
        if scores.window:
            hidden |= token <= position - scores.window
        weights = products.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        out[rows] = torch.einsum("hlm,mhd->lhd", weights, value).to(out.dtype)
    return out
