"""Attention of one query a sequence over a paged pool of keys and values.

Letters in shapes: B sequences, H query heads, K key-value heads, D head size, S slots of the pool.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu
from vlmbatch_kernels.paged_attention import PageLayout, Scores, paged_attention


@triton_on_gpu
def paged_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    layout: PageLayout,
    scores: Scores,
    scales: Tensor | None = None,
) -> Tensor:
    """Attend from each sequence's last token to all its keys, its own included.

    ``query``: (B, H, D). The rest as in ``paged_attention``. Returns (B, H, D).
    """
    starts = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
    return paged_attention(
        query, key_cache, value_cache, block_table, starts, seqlens_k, 1, layout, scores, scales
    )
