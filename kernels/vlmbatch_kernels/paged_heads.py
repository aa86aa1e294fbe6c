"""Keys and values in the slots of the paged pool, as they are or in e4m3 with a scale a head.

Letters in shapes: T tokens, K key-value heads, D head size, S slots of the pool.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlmbatch_kernels.quantized_rows import E4M3_MAX


def write_heads(
    cache: Tensor, slot_mapping: Tensor, heads: Tensor, scales: Tensor | None = None
) -> None:
    """Write ``heads`` (T, K, D) to slots (T,) int64 of ``cache`` (S, K, D).

    With ``scales`` (K,) float32 they are divided by these and rounded to the cache's dtype. What is
    beyond e4m3's largest number becomes that; what is no number stays none.
    """
    if scales is None:
        cache.index_copy_(0, slot_mapping, heads)
        return
    scaled = (heads.float() / scales[:, None]).clamp_(-E4M3_MAX, E4M3_MAX).to(cache.dtype)
    # Bytes: torch copies no e4m3 by index.
    cache.view(torch.uint8).index_copy_(0, slot_mapping, scaled.view(torch.uint8))


def read_heads(heads: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What stands for ``heads`` (..., K, D) of a cache with ``scales`` (K,), in ``dtype``."""
    if scales is None:
        return heads.to(dtype)
    return (heads.float() * scales[:, None]).to(dtype)


def check_caches(
    key_cache: Tensor, value_cache: Tensor, dtype: torch.dtype, scales: Tensor | None
) -> None:
    """Assert that both caches can hold heads of ``dtype`` with ``scales`` (2, K)."""
    assert key_cache.shape == value_cache.shape and key_cache.dtype == value_cache.dtype
    assert key_cache.is_contiguous() and value_cache.is_contiguous()
    if scales is None:
        assert key_cache.dtype == dtype, f"caches of {key_cache.dtype} beside {dtype}"
        return
    assert scales.shape == (2, key_cache.shape[1]) and scales.is_contiguous()
    assert scales.dtype == torch.float32
