"""Decode steps whose rows share prefixes, judged by the rule for every Triton kernel."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import kernel_cases
import torch
from vlmbatch_kernels.paged_attention import PageLayout
from vlmbatch_kernels.shared_decode import shared_decode

Tile = tuple[int, int, int]  # first row, number of rows, tokens that they share


def make_shared(
    totals: list[int],
    tiles: list[Tile],
    heads: tuple[int, int, int],
    softcap: float = 0.0,
    page_size: int = 256,
) -> kernel_cases.Make:
    """Rows with so many keys in all; ``heads``: query heads, key-value heads, their size.

    Rows behind a tile's first hold NaN in the prefix: they must read the first's.
    """
    make_decode = kernel_cases._decode(totals, *heads, softcap=softcap, page_size=page_size)

    def make(g: torch.Generator) -> tuple[Any, ...]:
        query, keys, values, table, seqlens_k, layout, scores = make_decode(g)
        lens = torch.zeros(len(totals), dtype=torch.int32)
        for first, count, shared in tiles:
            lens[first : first + count] = shared
            for row in range(first + 1, first + count):
                own = prefix_slots(table[row], shared, layout)
                keys[own] = values[own] = torch.nan
        padded = [*((first, count) for first, count, _ in tiles), (0, 0)]
        shared_by = lens, torch.tensor(padded, dtype=torch.int32)
        return query, keys, values, table, seqlens_k, *shared_by, layout, scores

    return make


def prefix_slots(table: torch.Tensor, tokens: int, layout: PageLayout) -> torch.Tensor:
    """Slots of a row's first tokens."""
    at = torch.arange(tokens)
    return table[at // layout.page_size].long() * layout.granule + at % layout.page_size


MIXED = [300, 290, 289, 9, 700, 640, 33], [(0, 3, 288), (4, 2, 96)]
SEVENTEEN = [131 + 9 * i for i in range(20)], [(1, 16, 128), (17, 2, 160)]

SHARED_CASES: dict[str, kernel_cases.Make] = {
    "mha-64": make_shared(*MIXED, (2, 2, 64)),
    "mha-128": make_shared(*SEVENTEEN, (2, 2, 128)),
    "gqa-24": make_shared(*MIXED, (14, 2, 24)),
    "gqa-64": make_shared(*SEVENTEEN, (7, 1, 64)),
    "mqa-128": make_shared(*MIXED, (40, 1, 128)),
    "softcap": make_shared(*MIXED, (4, 2, 32), softcap=1.5),
    "pages-of-16": make_shared(*MIXED, (4, 2, 32), page_size=16),
    "a-prefix-of-many-pages": make_shared([4500, 4400], [(0, 2, 4384)], (2, 1, 16)),
}


def check_shared(name: str, dtype: torch.dtype, device: str) -> None:
    with patch.dict(kernel_cases.CASES, {name: (shared_decode, SHARED_CASES[name], ())}):
        kernel_cases.check(name, dtype, device)
