"""Attention over the paged pool with torch's scaled_dot_product_attention, on any device.

Pages are gathered into dense blocks (``sdpa_plan``). The query heads that share a key-value head
are laid beside each other as rows of one query, so keys and values are never repeated.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from vlmbatch_kernels.paged_heads import read_heads
from vlmbatch_kernels.quantized_rows import E4M3

from vlmbatch.attention.base import AttentionMetadata, AttentionSpec, LayerKVCache
from vlmbatch.attention.paged import PagedBackend
from vlmbatch.attention.sdpa_plan import Block, plan_blocks


class TorchSdpaBackend(PagedBackend):
    """Gathers pages, then runs torch's attention on them. See ``AttentionBackend``."""

    name = "torch"
    captures_decodes = False  # a step's plan comes from lengths on the host
    shares_prefixes = False

    def __init__(self, block_size: int = 16, granule: int = 16) -> None:
        assert block_size % granule == 0, f"pages of {block_size} in steps of {granule}"
        self.block_size = block_size
        self.granule = granule
        self._buffers: dict[str, Tensor] = {}

    def _attend(
        self, query: Tensor, cache: LayerKVCache, metadata: AttentionMetadata, spec: AttentionSpec
    ) -> Tensor:
        blocks = metadata.plans.get(spec)
        if blocks is None:
            blocks = metadata.plans[spec] = plan_blocks(
                metadata,
                spec,
                block_size=self.block_size,
                granule=self.granule,
                num_slots=cache.key.shape[0],
                dtype=query.dtype,
            )
        if len(blocks) == 1 and isinstance(blocks[0].tokens, slice):
            return self._attend_block(query, cache, blocks[0], spec)
        out = torch.empty_like(query)
        for block in blocks:
            if isinstance(block.tokens, slice):
                out[block.tokens] = self._attend_block(query[block.tokens], cache, block, spec)
            else:
                rows = query.index_select(0, block.tokens)
                out.index_copy_(0, block.tokens, self._attend_block(rows, cache, block, spec))
        return out

    def varlen(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        spec: AttentionSpec,
    ) -> Tensor:
        return varlen_sdpa(query, key, value, cu_seqlens, max_seqlen, spec)

    def _attend_block(
        self, query: Tensor, cache: LayerKVCache, block: Block, spec: AttentionSpec
    ) -> Tensor:
        """Attend with the n * R queries of a block: (n * R, H, D) to the same."""
        group = spec.num_heads // spec.num_kv_heads
        heads = (spec.num_kv_heads, group, spec.head_dim)
        key_scales, value_scales = (None, None) if cache.scales is None else cache.scales
        key = self._gather("key", cache.key, block, spec)
        key = read_heads(key, key_scales, query.dtype).transpose(1, 2)
        value = self._gather("value", cache.value, block, spec)
        value = read_heads(value, value_scales, query.dtype).transpose(1, 2)
        grouped = query.reshape(block.size, block.rows, *heads).permute(0, 2, 3, 1, 4)
        grouped = grouped.reshape(block.size, spec.num_kv_heads, group * block.rows, spec.head_dim)
        if spec.softcap is None:
            out = F.scaled_dot_product_attention(
                grouped, key, value, attn_mask=block.mask, scale=spec.scale
            )
        else:
            out = _attend_softcapped(grouped, key, value, block.mask, spec)
        out = out.reshape(block.size, spec.num_kv_heads, group, block.rows, spec.head_dim)
        return out.permute(0, 3, 1, 2, 4).reshape(-1, spec.num_heads, spec.head_dim)

    def _gather(self, name: str, pool: Tensor, block: Block, spec: AttentionSpec) -> Tensor:
        """Return a block's keys or values as (n, L, K, D), valid until the next call."""
        chunks = pool.view(-1, self.granule, spec.num_kv_heads, spec.head_dim)
        shape = (block.chunks.numel(), *chunks.shape[1:])
        pages = out = self._buffer(name, shape, pool)
        if pool.dtype == E4M3:
            chunks, out = chunks.view(torch.uint8), pages.view(torch.uint8)
        torch.index_select(chunks, 0, block.chunks, out=out)
        # Anything may lie there, also what another row has left: no weight hides a NaN.
        out.view(-1, *chunks.shape[2:]).index_fill_(0, block.unfilled, 0)
        return pages.view(block.size, -1, spec.num_kv_heads, spec.head_dim)

    def _buffer(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return memory kept from call to call: fresh pages cost more than the copy into them."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != like.dtype:
            with torch.inference_mode(False):  # else it could only be written in that mode
                buffer = self._buffers[name] = torch.empty(
                    size, dtype=like.dtype, device=like.device
                )
        return buffer[:size].view(shape)


def varlen_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    spec: AttentionSpec,
) -> Tensor:
    """``AttentionBackend.varlen`` with torch's attention: sequences of one length together."""
    if len(query) == (len(cu_seqlens) - 1) * max_seqlen:
        return _equal_lengths(query, key, value, max_seqlen, spec)
    by_length: dict[int, list[int]] = {}
    for start, end in pairwise(cu_seqlens.tolist()):
        by_length.setdefault(end - start, []).append(start)
    out = torch.empty_like(query)
    for length, starts in by_length.items():
        first = torch.tensor(starts, device=query.device)[:, None]
        tokens = (first + torch.arange(length, device=query.device)).flatten()
        if length:
            out[tokens] = _equal_lengths(query[tokens], key[tokens], value[tokens], length, spec)
    return out


def _equal_lengths(
    query: Tensor, key: Tensor, value: Tensor, length: int, spec: AttentionSpec
) -> Tensor:
    """Attend within sequences of ``length`` tokens each: (T, H, D) to the same."""
    assert spec.softcap is None and spec.sliding_window is None, spec
    query, key, value = (
        tensor.view(-1, length, *tensor.shape[1:]).transpose(1, 2) for tensor in (query, key, value)
    )
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=spec.causal,
        scale=spec.scale,
        enable_gqa=spec.num_heads != spec.num_kv_heads,
    )
    return out.transpose(1, 2).flatten(0, 1)


def _attend_softcapped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, spec: AttentionSpec
) -> Tensor:
    assert spec.softcap is not None
    scores = (query @ key.transpose(-1, -2)).float() * (spec.scale / spec.softcap)
    weights = (scores.tanh() * spec.softcap + mask).softmax(dim=-1)
    return weights.to(value.dtype) @ value
