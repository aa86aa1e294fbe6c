"""Groups decode rows that share a KV prefix, so that it is read once for each tile. No torch.

What rows share is decided by content, not by blocks: a sequence may own a copy of its prefix's last
page.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from vlmbatch.engine.step import ScheduledChunk

MAX_ROWS = 16  # of a tile
STEP = 32  # keys that the kernel reads at a time: a row's own part begins at a multiple
_MIN_TOKENS = 128  # of a shared prefix
_MIN_SAVED = 16384  # tokens: to read fewer again takes no longer than to share them
# One program of each head reads a prefix from end to end: a few long ones would leave most of a GPU
# idle.
_TOKENS_PER_TILE = 1024


@dataclass(frozen=True, slots=True)
class PrefixTiles:
    """``lens``: tokens that each row shares with its tile; 0: it is in none.

    ``tiles``: first row and number of rows of each tile, 2 to ``MAX_ROWS``.
    """

    lens: list[int]
    tiles: list[tuple[int, int]]

    @property
    def num_saved(self) -> int:
        """Tokens that are not read again."""
        return sum(self.lens[first] * (num_rows - 1) for first, num_rows in self.tiles)


def sort_by_prefix(rows: Iterable[ScheduledChunk], granule: int) -> list[ScheduledChunk]:
    """Rows in an order in which those that share a prefix are adjacent."""
    every = max(_MIN_TOKENS // granule, 1)
    return sorted(rows, key=lambda row: _hashes(row, granule)[every - 1 :: every])


def find_shared_prefixes(rows: Seq[ScheduledChunk], granule: int) -> PrefixTiles | None:
    """Tiles of adjacent single-token rows; None where sharing saves little.

    A row joins the tile before it if the tile then saves at least as much as without it, and if the
    row has not far more in common with the next one.
    """
    # Of each row with the next: what a run of rows has in common is the minimum of these.
    common = [*_common_tokens([_hashes(row, granule) for row in rows], granule), 0]
    lens = [0] * len(rows)
    tiles = []
    first = 0
    while first < len(rows):
        shared, end = common[first], first + 1
        while end < min(len(rows), first + MAX_ROWS):
            tokens = min(shared, common[end - 1])
            num_rows = end - first
            loses = tokens * num_rows < shared * (num_rows - 1)
            if not tokens or loses or common[end] > 2 * common[end - 1]:
                break
            shared, end = tokens, end + 1
        if end > first + 1:
            lens[first:end] = [shared] * (end - first)
            tiles.append((first, end - first))
        first = end
    found = PrefixTiles(lens, tiles)
    is_spread = max(lens, default=0) <= _TOKENS_PER_TILE * len(tiles)
    return found if tiles and is_spread and found.num_saved >= _MIN_SAVED else None


def _hashes(row: ScheduledChunk, granule: int) -> list[bytes]:
    """Hashes of a row's leading granules, as far as these are in the pool before the step."""
    return row.sequence.registered_hashes(row.start // granule)


def _common_tokens(rows: list[list[bytes]], granule: int) -> Iterator[int]:
    """Tokens that each row has in common with the next, a multiple of ``STEP``; 0: too few."""
    shortest = -(-_MIN_TOKENS // granule)
    same = 0
    for a, b in pairwise(rows):
        limit = min(len(a), len(b))
        if limit < shortest or a[shortest - 1] != b[shortest - 1]:
            yield 0
            continue
        # Mostly as many as the pair before: questions about one image.
        if not (0 < same < limit and a[same - 1] == b[same - 1] and a[same] != b[same]):
            same = bisect_left(range(limit), True, lo=shortest, key=partial(_differ, a, b))
        yield same * granule // STEP * STEP


def _differ(a: list[bytes], b: list[bytes], index: int) -> bool:
    return a[index] != b[index]
