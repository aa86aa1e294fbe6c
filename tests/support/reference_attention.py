"""Attention as the definition says it, one sequence at a time: what backends are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmbatch.attention.base import AttentionMetadata, AttentionSpec, LayerKVCache


def reference_paged(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: LayerKVCache,
    metadata: AttentionMetadata,
    spec: AttentionSpec,
    block_size: int,
    granule: int,
) -> Tensor:
    """Write ``key`` and ``value`` to the pool, then attend over it in float32.

    ``query``: (T, H, D). ``key`` and ``value``: (T, K, D). Returns (T, H, D) in the dtype of
    ``query``.
    """
    cache.key[metadata.slot_mapping] = key
    cache.value[metadata.slot_mapping] = value
    out = torch.empty_like(query)
    start = 0
    for sequence, (length, total) in enumerate(
        zip(metadata.query_lens, metadata.seqlens_k_host, strict=True)
    ):
        token = torch.arange(total, device=query.device)
        page = metadata.block_table[sequence].long()[token // block_size]
        slots = page * granule + token % block_size
        out[start : start + length] = reference_dense(
            query[start : start + length], cache.key[slots], cache.value[slots], spec
        )
        start += length
    return out


def reference_dense(query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
    """Attend from one sequence's last queries to all its keys.

    ``query``: (L, H, D). ``key`` and ``value``: (M, K, D). Returns (L, H, D).
    """
    length, total = query.shape[0], key.shape[0]
    group = spec.num_heads // spec.num_kv_heads
    key = key.float().repeat_interleave(group, dim=1)
    value = value.float().repeat_interleave(group, dim=1)
    scores = torch.einsum("lhd,mhd->hlm", query.float(), key) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    query_position = torch.arange(total - length, total, device=query.device)[:, None]
    key_position = torch.arange(total, device=query.device)[None, :]
    visible = torch.ones_like(scores[0], dtype=torch.bool)
    if spec.causal:
        visible &= key_position <= query_position
    if spec.sliding_window is not None:
        visible &= key_position > query_position - spec.sliding_window
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    return torch.einsum("hlm,mhd->lhd", weights, value).to(query.dtype)
