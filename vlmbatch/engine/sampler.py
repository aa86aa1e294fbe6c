"""Turns logits into token ids by each sequence's sampling parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from vlmbatch_kernels.sampling import greedy_tokens, sample_tokens

from vlmbatch.config import SamplingParams


def sample(logits: Tensor, params: list[SamplingParams], positions: list[int]) -> Tensor:
    """Token ids (n,) int64 from ``logits`` (n, vocabulary) of any float dtype.

    The random number of a token comes from its row's seed and its position alone.
    """
    if all(p.temperature == 0 for p in params):
        return greedy_tokens(logits)
    return sample_tokens(
        logits,
        temperature=torch.tensor([p.temperature for p in params]),
        top_k=torch.tensor([p.top_k for p in params]),
        top_p=torch.tensor([p.top_p for p in params]),
        seeds=torch.tensor([p.seed for p in params]),
        positions=torch.tensor(positions),
        min_p=torch.tensor([p.min_p for p in params]),
    )
