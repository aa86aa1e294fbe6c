"""From hidden states to rotated queries, and to keys and values in the paged pool.

Letters in shapes: T tokens, H query heads, K key-value heads, D head size, S slots of the pool.
"""

from __future__ import annotations

from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu
from vlmbatch_kernels.linear import linear
from vlmbatch_kernels.rotary import rotary_and_cache


@triton_on_gpu
def project_qkv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
    scales: Tensor | None = None,
) -> Tensor:
    """Project to heads, normalise where there are norms, rotate, write keys and values
    to their slots, return the queries.

    ``x``: (T, in_features). ``weight``: ((H + 2K) * D, in_features), the rows of the query heads
    first, then those of keys and of values; ``bias``: ((H + 2K) * D,). ``cos`` and ``sin``:
    (T, 1, D), see ``apply_rotary``. ``key_cache`` and ``value_cache``: (S, K, D), written in place.
    ``slot_mapping``: (T,) int64. ``query_norm`` and ``key_norm``: (D,), and ``scales``: (2, K), see
    ``rotary_and_cache``. Returns (T, H, D).
    """
    qkv = linear(x, weight, bias).view(len(x), -1, key_cache.shape[2])
    rest = (key_cache, value_cache, slot_mapping, query_norm, key_norm, eps, scales)
    return rotary_and_cache(qkv, cos, sin, *rest)
