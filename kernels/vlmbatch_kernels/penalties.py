"""Logits lowered by the tokens that came before, without waiting for the device.

Letters in shapes: B rows, V vocabulary, L tokens of the longest history.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def penalise(
    logits: Tensor,
    tokens: Tensor,
    num_output: Tensor,
    factors: Tensor,
    ngram_sizes: Sequence[int],
) -> Tensor:
    """Return ``logits`` (B, V) of any float dtype after each row's penalties, in float32.

    ``tokens``: (B, L) int64, each row's history up to its last column; -1 before it begins, and
    for what is no token, as the places of images. The last ``num_output`` (B,) of them are
    generated. ``factors``: (3, B) float32, of repetition, presence and frequency. All on one device
    but ``ngram_sizes``, which decide what is computed.

    In this order: the logits of all tokens of the history are divided by the first factor where
    they are positive, else multiplied by it (CTRL, arXiv:1909.05858, section 4.1); those of
    generated ones lose the second once, and the third each time that they came (OpenAI's API
    reference); a token that would complete a sequence of ``ngram_sizes`` tokens for the second time
    gets -inf (arXiv:1705.04304, section 2.5); size 0 rules out nothing.
    """
    vocab_size = logits.shape[1]
    # One more column takes what is written for no token.
    scores = torch.zeros(len(logits), vocab_size + 1, device=logits.device)
    scores[:, :vocab_size] = logits
    if tokens.shape[1] == 0:
        return scores[:, :vocab_size]
    history = tokens.where((tokens >= 0) & (tokens < vocab_size), vocab_size)
    # A token that came often is written as often, each time the same value.
    found = scores.gather(1, history)
    repetition, presence, frequency = factors[..., None]
    scores.scatter_(1, history, torch.where(found > 0, found / repetition, found * repetition))
    from_end = torch.arange(history.shape[1], 0, -1, device=logits.device)
    generated = history.where(from_end <= num_output[:, None], vocab_size)
    found = scores.gather(1, generated)
    scores.scatter_(1, generated, found - presence)
    scores.scatter_add_(1, generated, -frequency.expand_as(found))
    for size in set(ngram_sizes) - {0}:
        if size <= history.shape[1]:
            rows = torch.tensor([row for row, own in enumerate(ngram_sizes) if own == size])
            _rule_out(scores, history, rows.to(logits.device, non_blocking=True), size)
    return scores[:, :vocab_size]


def _rule_out(scores: Tensor, history: Tensor, rows: Tensor, size: int) -> None:
    """Set the tokens that would repeat ``size`` tokens of these rows' histories to -inf."""
    none = scores.shape[1] - 1
    own = history.index_select(0, rows)
    windows = own.unfold(1, size, 1)  # (rows, L - size + 1, size)
    last = own[:, None, own.shape[1] - size + 1 :]
    repeats = (windows[..., :-1] == last).all(-1) & (windows < none).all(-1)
    banned = windows[..., -1].where(repeats, none)
    flat = rows[:, None] * scores.shape[1] + banned
    scores.view(-1).index_fill_(0, flat.flatten(), -torch.inf)
