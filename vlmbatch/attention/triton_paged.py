"""Attention over the paged pool with our own Triton kernels, on CUDA without flash-attn.

Pages and granules are as in ``flash``: full pages of 256 tokens, the last one as short as its
tokens need.
"""

from __future__ import annotations

from torch import Tensor
from vlmbatch_kernels.packed_attention import is_faster, packed_attention
from vlmbatch_kernels.paged_attention import PageLayout, Scores, paged_attention
from vlmbatch_kernels.paged_decode import paged_decode
from vlmbatch_kernels.shared_decode import shared_decode

from vlmbatch.attention.base import (
    AttentionMetadata,
    AttentionSpec,
    LayerKVCache,
    SharedPrefixes,
)
from vlmbatch.attention.paged import PagedBackend, is_plain
from vlmbatch.attention.torch_sdpa import varlen_sdpa


class TritonBackend(PagedBackend):
    """Decodes and prefills with a kernel each; attends without a cache as torch does.

    The pool needs ``block_size`` tokens of slack behind the last one it hands out. Attention over
    it must be causal.
    """

    name = "triton"
    captures_decodes = True
    shares_prefixes = True
    block_size = 256
    granule = 16
    _layout = PageLayout(block_size, granule)

    def varlen(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        spec: AttentionSpec,
    ) -> Tensor:
        if is_plain(spec) and is_faster(query, max_seqlen):
            return packed_attention(query, key, value, cu_seqlens, max_seqlen, spec.scale)
        return varlen_sdpa(query, key, value, cu_seqlens, max_seqlen, spec)

    def _attend(
        self, query: Tensor, cache: LayerKVCache, metadata: AttentionMetadata, spec: AttentionSpec
    ) -> Tensor:
        decodes = metadata.num_decodes
        if decodes == len(metadata.query_lens):
            return decode(query, cache, metadata, spec, self._layout)
        out = attend_chunks(query, cache, metadata, spec, self._layout)
        if decodes:
            out[:decodes] = decode(query[:decodes], cache, metadata, spec, self._layout)
        return out


def attend_chunks(
    query: Tensor,
    cache: LayerKVCache,
    metadata: AttentionMetadata,
    spec: AttentionSpec,
    layout: PageLayout,
) -> Tensor:
    """Attend with the queries of all sequences but the first ``num_decodes``.

    ``query``: (T, H, D), those of the first included. Returns (T, H, D), of which theirs are
    anything.
    """
    assert spec.causal, spec
    decodes = metadata.num_decodes
    return paged_attention(
        query,
        cache.key,
        cache.value,
        metadata.block_table[decodes:],
        metadata.cu_seqlens_q[decodes:],
        metadata.seqlens_k[decodes:],
        metadata.max_seqlen_q,
        layout,
        scores(spec),
        cache.scales,
    )


def decode(
    query: Tensor,
    cache: LayerKVCache,
    metadata: AttentionMetadata,
    spec: AttentionSpec,
    layout: PageLayout,
) -> Tensor:
    """Attend with the single queries of a step's first ``num_decodes`` sequences, B of them.

    ``query``: (B, H, D). Returns (B, H, D).
    """
    decodes, scales = metadata.num_decodes, cache.scales
    tables = metadata.block_table[:decodes], metadata.seqlens_k[:decodes]
    shared = shared_prefixes(metadata, spec)
    if shared is None:
        return paged_decode(query, cache.key, cache.value, *tables, layout, scores(spec), scales)
    places = *tables, shared.lens, shared.tiles
    return shared_decode(query, cache.key, cache.value, *places, layout, scores(spec), scales)


def shared_prefixes(metadata: AttentionMetadata, spec: AttentionSpec) -> SharedPrefixes | None:
    """What ``decode`` reads once for several sequences: windows leave little of it."""
    return metadata.shared if spec.sliding_window is None else None


def scores(spec: AttentionSpec) -> Scores:
    return Scores(spec.scale, spec.sliding_window or 0, spec.softcap or 0.0)
