"""``embed_with_features`` in Triton: each row is copied once, from where it comes from."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _embed_with_features(
    input_ids: tl.tensor,
    table: tl.tensor,
    features: tl.tensor,
    feature_rows: tl.tensor,
    out: tl.tensor,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    row = tl.load(feature_rows + token)
    source = features + row * HIDDEN
    if row < 0:
        source = table + tl.load(input_ids + token) * HIDDEN
    values = tl.load(source + columns, mask=inside)
    tl.store(out + token * HIDDEN + columns, values, mask=inside)


def embed_with_features(
    input_ids: Tensor, table: Tensor, features: Tensor, feature_rows: Tensor
) -> Tensor:
    (tokens,), hidden = input_ids.shape, table.shape[1]
    assert feature_rows.shape == (tokens,), f"{tuple(feature_rows.shape)} rows, {tokens} tokens"
    assert features.ndim == 2 and features.shape[1] == hidden, f"{tuple(features.shape)}"
    assert features.dtype == table.dtype, f"features of {features.dtype}, table of {table.dtype}"
    assert all(x.is_contiguous() for x in (input_ids, table, features, feature_rows))
    out = table.new_empty(tokens, hidden)
    block = min(4096, triton.next_power_of_2(hidden))
    _embed_with_features[(tokens, triton.cdiv(hidden, block))](
        input_ids,
        table,
        features,
        feature_rows,
        out,
        HIDDEN=hidden,
        BLOCK=block,
        num_warps=8,
    )
    return out
