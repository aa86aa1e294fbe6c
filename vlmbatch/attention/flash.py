"""Attention with flash-attn 2 (Dao, arXiv:2307.08691) over the paged pool, on CUDA.

flash-attn takes pages of a multiple of 256 tokens, but not how far apart they begin. The pool is
shown to it as overlapping pages of 256 tokens that begin every ``granule`` tokens: a sequence's
last page can then be as short as its tokens need, and what lies behind its end is never read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from flash_attn import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from torch import Tensor
from vlmbatch_kernels.rotary import rotary_and_cache

from vlmbatch.attention.base import AttentionMetadata, AttentionSpec, LayerKVCache


class FlashAttnBackend:
    """Decodes with the split-KV kernel, prefills with the variable-length one.

    The pool needs ``block_size`` tokens of slack behind the last one it hands out.
    """

    name = "flash-attn"
    block_size = 256
    granule = 16

    def paged(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: LayerKVCache,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
    ) -> Tensor:
        cache.key.index_copy_(0, metadata.slot_mapping, key)
        cache.value.index_copy_(0, metadata.slot_mapping, value)
        return self._attend(query, cache, metadata, spec)

    def paged_qkv(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: LayerKVCache,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
    ) -> Tensor:
        slots = metadata.slot_mapping
        query = rotary_and_cache(qkv, cos, sin, cache.key, cache.value, slots)
        return self._attend(query, cache, metadata, spec)

    def dense(self, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        out: Tensor = flash_attn_func(query, key, value, **_options(spec))
        return out

    def _attend(
        self, query: Tensor, cache: LayerKVCache, metadata: AttentionMetadata, spec: AttentionSpec
    ) -> Tensor:
        keys, values = self._pages(cache.key), self._pages(cache.value)
        decodes = metadata.num_decodes
        num_sequences = len(metadata.query_lens)
        parts = []
        if decodes:
            out = flash_attn_with_kvcache(
                query[:decodes].unsqueeze(1),
                keys,
                values,
                cache_seqlens=metadata.seqlens_k[:decodes],
                block_table=metadata.block_table[:decodes],
                **_options(spec),
            )
            parts.append(out.squeeze(1))
        if decodes < num_sequences:
            cu_seqlens_k = metadata.plans.get(spec)
            if cu_seqlens_k is None:
                lengths = metadata.seqlens_k[decodes:].cumsum(0, dtype=torch.int32)
                cu_seqlens_k = metadata.plans[spec] = F.pad(lengths, (1, 0))
            out = flash_attn_varlen_func(
                query[decodes:],
                keys,
                values,
                cu_seqlens_q=metadata.cu_seqlens_q[decodes:] - decodes,
                cu_seqlens_k=cu_seqlens_k,
                max_seqlen_q=metadata.max_seqlen_q,
                max_seqlen_k=metadata.max_seqlen_k,
                block_table=metadata.block_table[decodes:],
                **_options(spec),
            )
            parts.append(out)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _pages(self, pool: Tensor) -> Tensor:
        """(S, K, D) as overlapping pages (starts, block_size, K, D), without a copy."""
        slots, heads, size = pool.shape
        assert pool.is_contiguous()
        starts = (slots - self.block_size) // self.granule + 1
        row = heads * size
        return pool.as_strided(
            (starts, self.block_size, heads, size), (self.granule * row, row, size, 1)
        )


def _options(spec: AttentionSpec) -> dict[str, object]:
    window = (-1, -1) if spec.sliding_window is None else (spec.sliding_window - 1, 0)
    return {
        "softmax_scale": spec.scale,
        "causal": spec.causal,
        "window_size": window,
        "softcap": spec.softcap or 0.0,
    }
