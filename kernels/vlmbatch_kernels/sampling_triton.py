"""``greedy_tokens`` in Triton: one program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _greedy_tokens(
    logits: tl.tensor,
    tokens: tl.tensor,
    row_stride: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    best_at = lanes
    for start in tl.range(0, VOCAB, BLOCK):
        at = start + lanes
        values = tl.load(logits + row * row_stride + at, mask=at < VOCAB, other=-float("inf"))
        values = values.to(tl.float32)
        values = tl.where(values == values, values, float("inf"))  # NaN is the largest
        best_at = tl.where(values > best, at, best_at)
        best = tl.maximum(best, values)
    first = tl.min(tl.where(best == tl.max(best, axis=0), best_at, VOCAB), axis=0)
    tl.store(tokens + row, first.to(tl.int64))


def greedy_tokens(logits: Tensor) -> Tensor:
    rows, vocab = logits.shape
    assert logits.stride(1) == 1, f"logits of strides {logits.stride()}"
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _greedy_tokens[(rows,)](
        logits, tokens, logits.stride(0), VOCAB=vocab, BLOCK=_BLOCK, num_warps=16
    )
    return tokens
