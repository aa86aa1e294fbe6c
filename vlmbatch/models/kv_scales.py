"""Scales of keys and values in e4m3, a layer and key-value head, from the weights alone.

Behind an RMSNorm a token has at most the length sqrt(E) before the norm's weight. So no key and no
value, whatever the input, is longer than a bound that follows from the rows of the projection (by
Cauchy and Schwarz), and a scale that brings the bound to e4m3's largest number clips nothing. The
bound lies about sqrt(E) above what is usual, which costs a floating-point type no digit: e4m3 has
all of them down to a 10,000th of the bound.

Scales are powers of two: to divide by one rounds nothing, and what is read back is what was
rounded to e4m3, in any type. Letters in shapes: E hidden size, K key-value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vlmbatch_kernels.quantized_rows import E4M3_MAX

_LEAST = 2.0**-100  # of heads that are zero


def kv_scales(
    weight: Tensor, bias: Tensor | None, gain: Tensor, key_norm: Tensor | None, head_dim: int
) -> Tensor:
    """(2, K) float32: of keys and of values.

    ``weight``: (2 * K * D, E), the rows of the key heads first; ``bias``: (2 * K * D,). ``gain``:
    (E,), weight of the norm before the projection. ``key_norm``: (D,), weight of a norm of each key
    head behind it.
    """
    bounds = (weight.float() * gain.float()).norm(dim=1) * weight.shape[1] ** 0.5
    if bias is not None:
        bounds += bias.float().abs()
    keys, values = bounds.view(2, -1, head_dim)
    if key_norm is None:
        # Two numbers of a head are turned together: either may become as large as both are long.
        longest = torch.hypot(*keys.chunk(2, dim=1)).amax(1)
    else:
        longest = (key_norm.float().abs().amax() * head_dim**0.5).expand(len(keys))
    largest = torch.stack((longest, values.amax(1))).clamp_(min=_LEAST)
    exponents = torch.frexp(largest / E4M3_MAX).exponent
    return ((exponents + 127) << 23).view(torch.float32)  # two to their power, by its bits
