"""Attention of one query a sequence, where sequences share long prefixes.

Letters in shapes: B sequences, H query heads, K key-value heads, D head size, S slots of the pool.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu
from vlmbatch_kernels.paged_attention import PageLayout, Scores
from vlmbatch_kernels.paged_decode import paged_decode

MAX_TILE_ROWS = 16


@triton_on_gpu
def shared_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seqlens_k: Tensor,
    shared_lens: Tensor,
    tiles: Tensor,
    layout: PageLayout,
    scores: Scores,
    scales: Tensor | None = None,
) -> Tensor:
    """Attend as ``paged_decode`` does; the rows of a tile read their first keys through one table.

    ``tiles``: (n, 2) int32, first row of each tile and how many follow each other in it, at most
    ``MAX_TILE_ROWS``; with 0 rows a tile is padding. ``shared_lens``: (B,) int32, keys of each row
    that are read through the block table of its tile's first row: the same number for all rows of a
    tile, a multiple of 32 and less than ``seqlens_k``; 0 for rows in no tile. ``scores`` has no
    window. The rest as in ``paged_decode``. Returns (B, H, D).
    """
    assert not scores.window
    # Every granule as a page of its own: a prefix may end within a page.
    per_page = layout.page_size // layout.granule
    within = torch.arange(per_page, dtype=block_table.dtype, device=block_table.device)
    granules = (block_table[:, :, None] + within).flatten(1)
    for first, count in tiles.tolist():
        shared = int(shared_lens[first]) // layout.granule
        granules[first : first + count, :shared] = granules[first, :shared].clone()
    layout = PageLayout(layout.granule, layout.granule)
    return paged_decode(query, key_cache, value_cache, granules, seqlens_k, layout, scores, scales)
