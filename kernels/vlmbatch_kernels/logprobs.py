"""Log-probabilities of the tokens that were chosen, and of the likeliest in their places."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, tokens: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, 1 + K) float32 and whose they are, (B, 1 + K) int64.

    ``logits``: (B, V) of any float dtype, as the model gives them; ``tokens``: (B,) int64, which
    come first. Behind them the K likeliest, likeliest first: ``num_top`` or as many as there are.
    """
    scores = logits.float()
    total = scores.logsumexp(dim=-1, keepdim=True)
    values, ids = scores.topk(min(num_top, scores.shape[1]), dim=-1)
    own = tokens[:, None]
    return torch.cat([scores.gather(1, own), values], 1) - total, torch.cat([own, ids], 1)
