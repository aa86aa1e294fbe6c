"""Rotary position embedding (Su et al. 2021), alone or with the write to the paged KV pool.

Letters in shapes: T tokens, H query heads, K key-value heads, D head size, S slots of the pool.

A head is rotated as two halves ("neox" order). ``cos`` and ``sin`` span the whole head, with the
first half of ``sin`` negated: the rotation is then one multiply-add with the halves swapped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu
from vlmbatch_kernels.paged_heads import write_heads


def apply_rotary(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate every head by its token's angles.

    ``heads``: (T, H, D), (T, K, D), or both side by side as a fused projection leaves them.
    ``cos`` and ``sin``: (T, 1, D) in the dtype of ``heads``. Returns a new tensor like ``heads``.
    """
    swapped = heads.roll(heads.shape[-1] // 2, -1)
    return (heads * cos).addcmul_(swapped, sin)


@triton_on_gpu
def rotary_and_cache(
    qkv: Tensor,
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
    """Rotate query and key heads, write keys and values to their slots, return the queries.

    ``qkv``: (T, H + 2K, D); its tokens may stand any distance apart. ``key_cache`` and
    ``value_cache``: (S, K, D), written in place. ``slot_mapping``: (T,) int64. ``query_norm`` and
    ``key_norm``: (D,), the weights of an RMSNorm of each head before it is rotated, as in Qwen3;
    both or neither. ``scales``: (2, K) float32, of keys and of values in e4m3, see ``write_heads``.
    Returns (T, H, D).
    """
    num_kv_heads = key_cache.shape[1]
    heads = qkv[:, :-num_kv_heads]
    if query_norm is not None and key_norm is not None:
        heads = _normalise(heads, query_norm, key_norm, heads.shape[1] - num_kv_heads, eps)
    rotated = apply_rotary(heads, cos, sin)
    key_scales, value_scales = (None, None) if scales is None else scales
    write_heads(key_cache, slot_mapping, rotated[:, -num_kv_heads:], key_scales)
    write_heads(value_cache, slot_mapping, qkv[:, -num_kv_heads:], value_scales)
    return rotated[:, :-num_kv_heads]


def _normalise(
    heads: Tensor, query_norm: Tensor, key_norm: Tensor, num_heads: int, eps: float
) -> Tensor:
    """Queries and keys (T, H + K, D), rounded between scale and weight as ``rms_norm`` does."""
    wide = heads.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
    normed = (wide * scale).to(heads.dtype)
    normed[:, :num_heads] *= query_norm
    normed[:, num_heads:] *= key_norm
    return normed


def rotary_tables(inv_freq: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return ``cos`` and ``sin`` for positions 0 to ``length`` - 1, each (length, D).

    ``inv_freq``: (D / 2,) float32, radians a position. Angles are computed in float32.
    """
    angles = torch.arange(length, dtype=torch.float32, device=inv_freq.device)[:, None] * inv_freq
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)
