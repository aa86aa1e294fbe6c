"""``mask_tokens_`` in Triton: logits are written where they are ruled out, and never read."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _mask_tokens(
    logits: tl.tensor,
    rows: tl.tensor,
    masks: tl.tensor,
    row_stride: tl.tensor,
    VOCAB: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + number)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < VOCAB
    words = tl.load(masks + number * WORDS + at // 32, mask=inside, other=-1)
    ruled_out = ((words >> (at % 32)) & 1) == 0
    tl.store(logits + row * row_stride + at, -float("inf"), mask=inside & ruled_out)


def mask_tokens_(logits: Tensor, rows: Tensor, masks: Tensor) -> Tensor:
    vocab, (count, words) = logits.shape[1], masks.shape
    assert logits.stride(1) == 1, f"logits of strides {logits.stride()}"
    assert rows.shape == (count,), f"{tuple(rows.shape)} rows, {count} masks"
    assert masks.is_contiguous() and 32 * words >= vocab, f"{words} words for {vocab} tokens"
    _mask_tokens[(count, triton.cdiv(vocab, _BLOCK))](
        logits, rows, masks, logits.stride(0), VOCAB=vocab, WORDS=words, BLOCK=_BLOCK, num_warps=8
    )
    return logits
