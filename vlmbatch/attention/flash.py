"""Attention with flash-attn 2 (Dao, arXiv:2307.08691) over the paged pool, on CUDA.

flash-attn takes pages of a multiple of 256 tokens, but not how far apart they begin. The pool is
shown to it as overlapping pages of 256 tokens that begin every ``granule`` tokens: a sequence's
last page can then be as short as its tokens need, and what lies behind its end is never read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from flash_attn import flash_attn_with_kvcache

# The package's own functions for prompts are torch operators of Python: their first call imports
# torch's compiler, which takes seconds, and they have no argument for the output.
from flash_attn.flash_attn_interface import flash_attn_gpu
from torch import Tensor
from vlmbatch_kernels.dispatch import has_triton
from vlmbatch_kernels.packed_attention import is_faster, packed_attention
from vlmbatch_kernels.paged_attention import PageLayout

from vlmbatch.attention.base import AttentionMetadata, AttentionSpec, LayerKVCache
from vlmbatch.attention.paged import PagedBackend, is_plain
from vlmbatch.attention.triton_paged import attend_chunks, decode, shared_prefixes

# Programs of ``paged_decode`` that fill a GPU. Fewer leave some of it idle: flash-attn then divides
# the keys of a sequence among several.
_MIN_PROGRAMS = 1024


# Of head sizes; others are padded with zeros, which change no score.
_HEAD_MULTIPLE = 8


class _ChunkPlan(NamedTuple):
    """The sequences with several queries: offsets of their queries and keys, their pages."""

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    block_table: Tensor | None


class FlashAttnBackend(PagedBackend):
    """Prefills with flash-attn's variable-length kernel, decodes with its split-KV one or ours.

    Keys and values in e4m3, which flash-attn does not read, are left to our kernels.

    The pool needs ``block_size`` tokens of slack behind the last one it hands out.
    """

    name = "flash-attn"
    captures_decodes = True
    shares_prefixes = has_triton()
    block_size = 256
    granule = 16
    _layout = PageLayout(block_size, granule)

    def __init__(self) -> None:
        self._compiled: set[AttentionSpec] = set()

    def try_out(self, device: str) -> None:
        """Attend once, over next to nothing.

        Raises:
            RuntimeError: flash-attn does not support this GPU, or was built without kernels for it.
        """
        query, key, value = torch.zeros(3, 8, 1, 64, dtype=torch.float16, device=device)
        offsets = torch.tensor([0, 8], dtype=torch.int32, device=device)
        self.varlen(query, key, value, offsets, 8, AttentionSpec(1, 1, 64, scale=1.0))

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
        if missing := -spec.head_dim % _HEAD_MULTIPLE:
            query, key, value = (F.pad(x, (0, missing)) for x in (query, key, value))
        if len(query) == (len(cu_seqlens) - 1) * max_seqlen:
            # The kernel for equal lengths divides the keys of a sequence where there are few.
            batch = [x.view(-1, max_seqlen, *x.shape[1:]) for x in (query, key, value)]
            out = _equal_lengths(batch, spec).flatten(0, 1)
        else:
            out = torch.empty_like(query)
            plan = _ChunkPlan(cu_seqlens, cu_seqlens, None)
            _varying_lengths(query, key, value, out, plan, (max_seqlen, max_seqlen), spec)
        return out[..., : spec.head_dim]

    def _attend(
        self, query: Tensor, cache: LayerKVCache, metadata: AttentionMetadata, spec: AttentionSpec
    ) -> Tensor:
        decodes = metadata.num_decodes
        if decodes == len(metadata.query_lens):
            return self._attend_decodes(query, cache, metadata, spec)
        if cache.scales is None:
            out = torch.empty_like(query)
            self._attend_chunks(query[decodes:], cache, metadata, spec, out[decodes:])
        else:  # flash-attn reads no e4m3
            out = attend_chunks(query, cache, metadata, spec, self._layout)
        if decodes:
            out[:decodes] = self._attend_decodes(query[:decodes], cache, metadata, spec)
        return out

    def _attend_decodes(
        self,
        query: Tensor,
        cache: LayerKVCache,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
    ) -> Tensor:
        decodes = metadata.num_decodes
        if cache.scales is not None or shared_prefixes(metadata, spec) is not None:
            return decode(query, cache, metadata, spec, self._layout)
        if has_triton() and (
            decodes * spec.num_kv_heads >= _MIN_PROGRAMS
            # Compiled by its first step, whatever the size: no later one may then be a capture.
            or spec not in self._compiled
        ):
            self._compiled.add(spec)
            return decode(query, cache, metadata, spec, self._layout)
        out: Tensor = flash_attn_with_kvcache(
            query.unsqueeze(1),
            self._pages(cache.key),
            self._pages(cache.value),
            cache_seqlens=metadata.seqlens_k[:decodes],
            block_table=metadata.block_table[:decodes],
            softmax_scale=spec.scale,
            causal=spec.causal,
            window_size=_window(spec),
            softcap=spec.softcap or 0.0,
        )
        return out.squeeze(1)

    def _attend_chunks(
        self,
        query: Tensor,
        cache: LayerKVCache,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        out: Tensor,
    ) -> None:
        plan = metadata.plans.get(spec)
        if plan is None:
            plan = metadata.plans[spec] = _plan_chunks(metadata)
        pages = self._pages(cache.key), self._pages(cache.value)
        longest = metadata.max_seqlen_q, metadata.max_seqlen_k
        _varying_lengths(query, *pages, out, plan, longest, spec)

    def _pages(self, pool: Tensor) -> Tensor:
        """(S, K, D) as overlapping pages (starts, block_size, K, D), without a copy."""
        slots, heads, size = pool.shape
        assert pool.is_contiguous()
        starts = (slots - self.block_size) // self.granule + 1
        row = heads * size
        return pool.as_strided(
            (starts, self.block_size, heads, size), (self.granule * row, row, size, 1)
        )


def _equal_lengths(batch: list[Tensor], spec: AttentionSpec) -> Tensor:
    """``batch``: queries, keys and values, (sequences, tokens, heads, D) each, as what returns."""
    out: Tensor = flash_attn_gpu.fwd(
        *batch,
        None,  # where to write
        None,  # ALiBi slopes
        0.0,  # dropout
        spec.scale,
        spec.causal,
        *_window(spec),
        spec.softcap or 0.0,
        False,  # return the weights
        None,  # random numbers
    )[0]
    return out


def _varying_lengths(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    plan: _ChunkPlan,
    longest: tuple[int, int],
    spec: AttentionSpec,
) -> None:
    """Packed sequences; ``key`` and ``value`` may be pages. ``longest``: of queries and of keys."""
    flash_attn_gpu.varlen_fwd(
        query,
        key,
        value,
        out,
        plan.cu_seqlens_q,
        plan.cu_seqlens_k,
        None,  # used lengths of the keys: all
        None,  # padding on their left
        plan.block_table,
        None,  # ALiBi slopes
        *longest,
        0.0,  # dropout
        spec.scale,
        False,  # zero the output first
        spec.causal,
        *_window(spec),
        spec.softcap or 0.0,
        False,  # return the weights
        None,  # random numbers
    )


def _plan_chunks(metadata: AttentionMetadata) -> _ChunkPlan:
    decodes = metadata.num_decodes
    lengths = metadata.seqlens_k[decodes:].cumsum(0, dtype=torch.int32)
    return _ChunkPlan(
        metadata.cu_seqlens_q[decodes:] - decodes,
        F.pad(lengths, (1, 0)),
        metadata.block_table[decodes:],
    )


def _window(spec: AttentionSpec) -> tuple[int, int]:
    """Keys seen before and behind a query's own; -1 is no limit but that of ``causal``."""
    return (-1, -1) if spec.sliding_window is None else (spec.sliding_window - 1, 0)
