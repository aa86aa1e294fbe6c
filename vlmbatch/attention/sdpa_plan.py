"""How one step's ragged sequences become a few dense blocks for torch's attention.

A tile is a run of one sequence's queries with the pages it sees; a block is a stack of tiles,
padded to common numbers of queries and pages. Letters in shapes: n tiles of a block, R queries,
P pages, L keys of a block, G query heads a key-value head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlmbatch.attention.base import AttentionMetadata, AttentionSpec

_TILE_ROWS = 256  # a long chunk is cut, so that its first queries need not see its last keys
_MAX_MASK_ELEMENTS = 2**22  # of one block; also bounds the scores where they are materialised
_MAX_KEYS = 2**16  # of one block: keys and values are copied
_KEY_COST = 16  # fetching a key costs about as much as attending to it from this many queries
_FREE_WASTE = 2**16  # padding that costs less than the operations of one more block
_WASTE_SHARE = 8  # beyond that, padding may cost one part in this many of what is needed


class Tiles(NamedTuple):
    """For each tile, ``rows`` queries from flat token ``start``, the first at ``position``.

    All are (n,) int64. ``first_page`` and ``num_pages`` count pages of the tile's sequence.
    """

    sequence: NDArray[np.int64]
    start: NDArray[np.int64]
    rows: NDArray[np.int64]
    position: NDArray[np.int64]
    first_page: NDArray[np.int64]
    num_pages: NDArray[np.int64]

    def take(self, which: slice | NDArray[np.int64] | list[int]) -> Tiles:
        return Tiles(*(column[which] for column in self))


@dataclass(frozen=True, slots=True)
class Block:
    """``tokens``: the block's n * R rows among the step's T, as a slice where they are one.

    Padding repeats a tile's last query, so that it is computed twice and written twice the same.
    ``chunks``: (n * L / granule,) int32, rows of the pool seen as (S / granule, granule, K, D).
    ``unfilled``: (U,) int64, which of the n * L keys are behind the last one that a tile sees.
    ``mask``: (n, 1, 1 or G * R, L), 0 where a key is seen and -inf where not.
    """

    size: int
    rows: int
    tokens: slice | Tensor
    chunks: Tensor
    unfilled: Tensor
    mask: Tensor


def plan_blocks(
    metadata: AttentionMetadata,
    spec: AttentionSpec,
    *,
    block_size: int,
    granule: int,
    num_slots: int,
    dtype: torch.dtype,
) -> list[Block]:
    """Cover all queries of a step with blocks that waste little and stay within bounds."""
    tiles = _tiles(metadata, spec, block_size)
    decodes = tiles.take(slice(metadata.num_decodes))  # a sequence with one query is one tile
    chunks = tiles.take(slice(metadata.num_decodes, None))
    group = spec.num_heads // spec.num_kv_heads
    return [
        _block(stack, metadata, spec, block_size, granule, num_slots, dtype)
        for kind in (decodes, chunks)
        for stack in _pack(kind, block_size, group)
    ]


def _tiles(metadata: AttentionMetadata, spec: AttentionSpec, block_size: int) -> Tiles:
    lengths = np.array(metadata.query_lens)
    totals = np.array(metadata.seqlens_k_host)
    group = spec.num_heads // spec.num_kv_heads
    most = np.clip(_MAX_MASK_ELEMENTS // (group * totals), 1, _TILE_ROWS)
    pieces = -(-lengths // most)
    sequence = np.repeat(np.arange(len(lengths)), pieces)
    piece = np.arange(len(sequence)) - np.repeat(pieces.cumsum() - pieces, pieces)
    offset = piece * most[sequence]
    rows = np.minimum(most[sequence], lengths[sequence] - offset)
    start = (lengths.cumsum() - lengths)[sequence] + offset
    position = (totals - lengths)[sequence] + offset
    first_page = np.zeros_like(position)
    if spec.sliding_window is not None:
        first_page = np.maximum(position - spec.sliding_window + 1, 0) // block_size
    seen = position + rows if spec.causal else totals[sequence]
    num_pages = -(-seen // block_size) - first_page
    return Tiles(sequence, start, rows, position, first_page, num_pages)


def _pack(tiles: Tiles, block_size: int, group: int) -> list[Tiles]:
    """Stack tiles of like size: all of them in their own order where that wastes little."""
    if len(tiles.rows) == 0:
        return []
    keys = tiles.num_pages * block_size
    size, max_rows, max_keys = len(keys), int(tiles.rows.max()), int(keys.max())
    needed = int(((tiles.rows + _KEY_COST) * keys).sum())
    if _fits(size, max_rows, max_keys, needed, group):
        return [tiles]
    stacks: list[list[int]] = []
    for tile in np.lexsort((keys, tiles.rows))[::-1].tolist():
        tile_rows, tile_keys = int(tiles.rows[tile]), int(keys[tile])
        cost = (tile_rows + _KEY_COST) * tile_keys
        if stacks:
            max_keys = max(max_keys, tile_keys)
            if _fits(len(stacks[-1]) + 1, max_rows, max_keys, needed + cost, group):
                stacks[-1].append(tile)
                needed += cost
                continue
        stacks.append([tile])
        max_rows, max_keys, needed = tile_rows, tile_keys, cost
    return [tiles.take(sorted(stack)) for stack in stacks]


def _fits(size: int, rows: int, keys: int, needed: int, group: int) -> bool:
    """Whether a stack of ``size`` tiles stays within bounds and wastes little of what it costs."""
    waste = size * (rows + _KEY_COST) * keys - needed
    return size == 1 or (
        size * group * rows * keys <= _MAX_MASK_ELEMENTS
        and size * keys <= _MAX_KEYS
        and waste <= max(needed // _WASTE_SHARE, _FREE_WASTE)
    )


def _block(
    tiles: Tiles,
    metadata: AttentionMetadata,
    spec: AttentionSpec,
    block_size: int,
    granule: int,
    num_slots: int,
    dtype: torch.dtype,
) -> Block:
    device = metadata.block_table.device
    size, max_rows, num_pages = len(tiles.rows), int(tiles.rows.max()), int(tiles.num_pages.max())
    columns = torch.from_numpy(np.stack(tiles)).to(device, non_blocking=True).unsqueeze(-1)
    sequence, start, rows, position, first_page, _ = columns.unbind()

    row = torch.arange(max_rows, device=device).clamp(max=rows - 1)
    flat = tiles.start[0] + np.arange(size) * max_rows
    tokens: slice | Tensor = (start + row).flatten()
    if (tiles.start == flat).all() and (tiles.rows == max_rows).all():
        tokens = slice(int(flat[0]), int(flat[-1]) + max_rows)

    # A page past a sequence's table or past the pool is masked below; it only has to be readable.
    page = (first_page + torch.arange(num_pages, device=device)).clamp_(
        max=metadata.block_table.shape[1] - 1
    )
    units = torch.arange(block_size // granule, device=device, dtype=torch.int32)
    chunks = metadata.block_table[sequence, page].unsqueeze(-1) + units
    chunks = chunks.flatten().clamp_(0, num_slots // granule - 1)

    key_position = first_page * block_size + torch.arange(num_pages * block_size, device=device)
    query_position = (position + row).unsqueeze(-1)
    last = metadata.seqlens_k[sequence].unsqueeze(-1) - 1
    last = query_position if spec.causal else last.expand_as(query_position)
    hidden = key_position.unsqueeze(1) > last
    if spec.sliding_window is not None:
        hidden |= key_position.unsqueeze(1) <= query_position - spec.sliding_window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
    mask = mask.masked_fill_(hidden, -torch.inf).unsqueeze(1)
    if max_rows > 1:
        mask = mask.repeat(1, 1, spec.num_heads // spec.num_kv_heads, 1)
    unfilled = torch.from_numpy(
        _unfilled(tiles, metadata, spec, num_pages * block_size, block_size)
    )
    return Block(size, max_rows, tokens, chunks, unfilled.to(device, non_blocking=True), mask)


def _unfilled(
    tiles: Tiles, metadata: AttentionMetadata, spec: AttentionSpec, num_keys: int, block_size: int
) -> NDArray[np.int64]:
    """Of the ``num_keys`` of each tile, those behind the last that it sees."""
    totals = np.array(metadata.seqlens_k_host)[tiles.sequence]
    end = tiles.position + tiles.rows if spec.causal else totals
    filled = end - tiles.first_page * block_size
    counts = num_keys - filled
    firsts = np.arange(len(counts)) * num_keys + filled
    return np.repeat(firsts - (counts.cumsum() - counts), counts) + np.arange(counts.sum())
