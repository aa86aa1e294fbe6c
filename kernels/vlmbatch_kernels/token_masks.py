"""Logits of tokens that a grammar rules out, set to -inf by a bit a token.

Letters in shapes: B rows, V vocabulary, M rows with a mask, W words of 32 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu


@triton_on_gpu
def mask_tokens_(logits: Tensor, rows: Tensor, masks: Tensor) -> Tensor:
    """Set ``logits`` (B, V) of any float dtype to -inf in place, where a row's bit is 0.

    ``rows``: (M,) int64, those that have a mask, each once. ``masks``: (M, W) int32 with
    32 * W >= V; bit ``i`` of word ``w`` is of token 32 * w + i. Returns ``logits``.
    """
    bits = torch.arange(32, dtype=torch.int32, device=masks.device)
    allowed = (masks[:, :, None] >> bits) & 1
    ruled_out = allowed.flatten(1)[:, : logits.shape[1]] == 0
    return logits.index_copy_(
        0, rows, logits.index_select(0, rows).masked_fill_(ruled_out, -torch.inf)
    )
