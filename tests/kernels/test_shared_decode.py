"""Decoding over shared prefixes: the twin against plain decoding."""

from __future__ import annotations

import pytest
import torch
from shared_cases import MIXED, SEVENTEEN, make_shared, prefix_slots
from vlmbatch_kernels.paged_decode import paged_decode
from vlmbatch_kernels.shared_decode import shared_decode


@pytest.mark.parametrize("page_size", [16, 256])
@pytest.mark.parametrize(("totals", "tiles"), [MIXED, SEVENTEEN], ids=["mixed", "seventeen"])
def test_rows_with_copies_of_a_prefix_attend_as_by_themselves(
    totals: list[int], tiles: list[tuple[int, int, int]], page_size: int
) -> None:
    """Full pages, and partial ones, that hold the same as those of a tile's first row."""
    make = make_shared(totals, tiles, (4, 2, 8), softcap=2.0, page_size=page_size)
    query, keys, values, table, seqlens_k, lens, rows, layout, scores = make(torch.Generator())
    for first, count, shared in tiles:
        source = prefix_slots(table[first], shared, layout)
        for row in range(first + 1, first + count):
            for cache in (keys, values):
                cache[prefix_slots(table[row], shared, layout)] = cache[source]
    want = paged_decode(query, keys, values, table, seqlens_k, layout, scores)
    got = shared_decode(query, keys, values, table, seqlens_k, lens, rows, layout, scores)
    torch.testing.assert_close(got, want)
