"""Log-probabilities of the tokens that were chosen, and of the likeliest in their places."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(
    logits: Tensor, tokens: Tensor, num_top: int, scored: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, 1 + K + S) float32 and whose they are, (B, 1 + K + S) int64.

    ``logits``: (B, V) of any float dtype, as the model gives them; ``tokens``: (B,) int64, which
    come first. Behind them the K likeliest, likeliest first: ``num_top`` or as many as there are;
    and then those of ``scored`` (B, S) int64, if given.
    """
    scores = logits.float()
    total = scores.logsumexp(dim=-1, keepdim=True)
    ids = scores.topk(min(num_top, scores.shape[1]), dim=-1).indices
    own = tokens[:, None]
    all_ids = torch.cat([own, ids] if scored is None else [own, ids, scored], 1)
    return scores.gather(1, all_ids) - total, all_ids
