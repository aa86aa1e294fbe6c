"""Next tokens from logits, reproducibly: a row depends on its logits, seed and position alone.

Letters in shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu

# Increment and multipliers of SplitMix64 (Steele, Lea and Flood 2014, finaliser "Mix13" of
# Stafford), as signed 64-bit integers: torch multiplies modulo 2**64.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_UNIFORM_BITS = 48  # few enough that uniform * total < total in float64


@triton_on_gpu
def greedy_tokens(logits: Tensor) -> Tensor:
    """Return the likeliest token of each row, (B,) int64, of ``logits`` (B, V) of any float dtype.

    Of tokens that tie, the first. NaN counts as the largest.
    """
    return logits.argmax(dim=-1)


def sample_tokens(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    min_p: Tensor | None = None,
) -> Tensor:
    """Choose one token a row: the likeliest where ``temperature`` is 0, else by inverse CDF.

    ``logits``: (B, V) of any float dtype. ``temperature``, ``top_p`` and ``min_p``: (B,) float32,
    ``top_k``: (B,) int64, 0 for all; these four on the host, since they decide what is computed.
    ``seeds`` and ``positions``: (B,) int64, on either. The host never waits for the device.
    Tokens that tie with the last one kept by ``top_k`` or ``top_p`` are kept too; of those kept,
    the ones that are less likely than ``min_p`` times the likeliest are left out
    (arXiv:2407.01082). Of a row with NaN or +inf, the token is one that has it. Returns
    (B,) int64 on the device of ``logits``.
    """
    tokens = greedy_tokens(logits)
    rows = temperature.nonzero().squeeze(1)
    if rows.numel() == 0:
        return tokens
    device = logits.device
    chosen = rows.to(device, non_blocking=True)
    scaled = logits.index_select(0, chosen).float()
    # The likeliest token stays at 0 however low the temperature: nothing overflows.
    scaled -= scaled.amax(dim=-1, keepdim=True)
    scaled /= temperature[rows].to(device, non_blocking=True)[:, None]
    scaled = _keep_top_k(scaled, top_k[rows])
    probs = _keep_top_p(scaled.softmax(dim=-1), top_p[rows])
    if min_p is not None:
        probs = _keep_min_p(probs, min_p[rows])

    cdf = probs.cumsum(dim=-1, dtype=torch.float64)
    uniform = counter_uniform(
        seeds.to(device, non_blocking=True)[chosen], positions.to(device, non_blocking=True)[chosen]
    )
    target = uniform[:, None] * cdf[:, -1:]
    sampled = torch.searchsorted(cdf, target, right=True).squeeze(1)
    sampled = sampled.where(cdf[:, -1].isfinite(), tokens.index_select(0, chosen))
    return tokens.index_copy_(0, chosen, sampled.clamp_(max=logits.shape[-1] - 1))


def counter_uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """Return one number of [0, 1) for each (seed, position): (B,) float64 from (B,) int64.

    Counter-based: SplitMix64 of a stream that the mixed seed opens, at the given position.
    """
    state = _mix(_mix(seeds + _GAMMA) + positions * _GAMMA)
    return _shift(state, 64 - _UNIFORM_BITS).double() * 2.0**-_UNIFORM_BITS


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right without the sign that int64 carries along."""
    mask: int = 2 ** (64 - bits) - 1
    return (z >> bits) & mask


def _keep_top_k(logits: Tensor, top_k: Tensor) -> Tensor:
    """Set the logits below each row's ``top_k``-th to -inf."""
    vocab_size = logits.shape[-1]
    limited = (top_k > 0) & (top_k < vocab_size)
    if not limited.any():
        return logits
    rank = torch.where(limited, top_k, vocab_size) - 1
    largest = int(rank[limited].max()) + 1
    best = logits.topk(largest, dim=-1).values
    last = rank.clamp(max=largest - 1)[:, None].to(logits.device, non_blocking=True)
    threshold = best.gather(1, last)
    unlimited = ~limited[:, None].to(logits.device, non_blocking=True)
    return logits.masked_fill(~((logits >= threshold) | unlimited), -torch.inf)


def _keep_top_p(probs: Tensor, top_p: Tensor) -> Tensor:
    """Zero all but each row's smallest set of likeliest tokens whose mass reaches ``top_p``."""
    if not (top_p < 1).any():
        return probs
    limit = top_p.to(probs.device, non_blocking=True)[:, None]
    ordered = probs.sort(dim=-1, descending=True).values
    mass_before = ordered.cumsum(dim=-1, dtype=torch.float64) - ordered
    mass_before[:, 0] = -1.0  # the likeliest token is kept, however low the limit
    threshold = ordered.masked_fill(mass_before >= limit, torch.inf).amin(dim=-1, keepdim=True)
    return probs.masked_fill((probs < threshold) & (limit < 1), 0.0)


def _keep_min_p(probs: Tensor, min_p: Tensor) -> Tensor:
    """Zero the tokens less likely than each row's ``min_p`` times its likeliest."""
    if not (min_p > 0).any():
        return probs
    share = min_p.to(probs.device, non_blocking=True)[:, None]
    return probs.masked_fill(probs < share * probs.amax(dim=-1, keepdim=True), 0.0)
