"""Random steps over a shuffled paged pool, for tests of attention and of models."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlmbatch.attention.base import (
    AttentionBackend,
    AttentionMetadata,
    AttentionSpec,
    LayerKVCache,
)
from vlmbatch.models.llava.model import Model as LlavaModel
from vlmbatch.models.vision_language_model import Embedded


@dataclass
class Step:
    """One step's attention inputs; ``pool``: (2, S, K, D), what earlier steps left there."""

    metadata: AttentionMetadata
    query: Tensor
    key: Tensor
    value: Tensor
    pool: Tensor


def write_and_attend(
    backend: AttentionBackend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: LayerKVCache,
    metadata: AttentionMetadata,
    spec: AttentionSpec,
) -> Tensor:
    """What a decoder layer does: keys and values (T, K, D) go to the pool, then queries attend."""
    cache.key.index_copy_(0, metadata.slot_mapping, key)
    cache.value.index_copy_(0, metadata.slot_mapping, value)
    return backend.attend(query, cache, metadata, spec)


def make_step(
    lengths: list[tuple[int, int]],
    spec: AttentionSpec,
    block_size: int = 16,
    granule: int = 16,
    *,
    generator: torch.Generator,
) -> Step:
    """Make a step of sequences with (query length, keys in all), single queries first."""
    heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    tables, num_slots = shuffled_tables(
        [total for _, total in lengths], block_size, granule, generator
    )
    tokens = sum(length for length, _ in lengths)
    return Step(
        metadata=make_metadata(lengths, tables, block_size, granule),
        query=torch.randn(tokens, heads, dim, generator=generator),
        key=torch.randn(tokens, kv_heads, dim, generator=generator),
        value=torch.randn(tokens, kv_heads, dim, generator=generator),
        pool=torch.randn(2, num_slots, kv_heads, dim, generator=generator),
    )


def make_pool(step: Step, spec: AttentionSpec) -> LayerKVCache:
    return LayerKVCache(*step.pool.clone())


def shuffled_tables(
    totals: list[int], block_size: int, granule: int, generator: torch.Generator
) -> tuple[list[list[int]], int]:
    """Lay the pages of sequences over a pool at random; return tables (in granules) and slots.

    Each sequence's last page is as short as the granule allows.
    """
    pages = []
    for sequence, total in enumerate(totals):
        for page in range(-(-total // block_size)):
            filled = min(block_size, total - page * block_size)
            pages.append((sequence, page, -(-filled // granule)))
    tables = [[0] * -(-total // block_size) for total in totals]
    free = 1  # the pool's first granule belongs to nobody
    for which in torch.randperm(len(pages), generator=generator).tolist():
        sequence, page, granules = pages[which]
        tables[sequence][page] = free
        free += granules
    return tables, free * granule


def make_metadata(
    lengths: list[tuple[int, int]],
    tables: list[list[int]],
    block_size: int = 16,
    granule: int = 16,
) -> AttentionMetadata:
    """Describe a step whose sequences have (query length, keys in all) and these tables."""
    query_lens = [length for length, _ in lengths]
    totals = [total for _, total in lengths]
    decodes = next((i for i, n in enumerate(query_lens) if n > 1), len(query_lens))
    width = max(len(table) for table in tables)
    slots = [
        tables[sequence][token // block_size] * granule + token % block_size
        for sequence, (length, total) in enumerate(lengths)
        for token in range(total - length, total)
    ]
    return AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).int(),
        seqlens_k=torch.tensor(totals, dtype=torch.int32),
        block_table=torch.tensor(
            [table + [0] * (width - len(table)) for table in tables], dtype=torch.int32
        ),
        slot_mapping=torch.tensor(slots),
        query_lens=query_lens,
        seqlens_k_host=totals,
        num_decodes=decodes,
        max_seqlen_q=max(query_lens),
        max_seqlen_k=max(totals),
    )


def on_device(metadata: AttentionMetadata, device: torch.device | str) -> AttentionMetadata:
    return replace(
        metadata,
        cu_seqlens_q=metadata.cu_seqlens_q.to(device),
        seqlens_k=metadata.seqlens_k.to(device),
        block_table=metadata.block_table.to(device),
        slot_mapping=metadata.slot_mapping.to(device),
    )


def forward_in_chunks(
    model: LlavaModel,
    embeds: list[Tensor],
    chunks: list[int],
    *,
    block_size: int = 16,
    granule: int = 16,
) -> list[Tensor]:
    """Feed sequences (L, E) through the decoder side by side; return their hidden states.

    In every step each unfinished sequence advances by its entry of ``chunks``.
    """
    totals = [len(rows) for rows in embeds]
    generator = torch.Generator().manual_seed(sum(totals))
    tables, num_slots = shuffled_tables(totals, block_size, granule, generator)
    num_slots += block_size  # slack behind the last page, which backends may ask for
    caches = [
        LayerKVCache(*embeds[0].new_zeros(2, num_slots, spec.num_kv_heads, spec.head_dim))
        for spec in model.attention_specs
    ]
    done = [0] * len(totals)
    outputs: list[list[Tensor]] = [[] for _ in totals]
    while any(start < total for start, total in zip(done, totals, strict=True)):
        lengths = {
            i: min(chunks[i], total - done[i]) for i, total in enumerate(totals) if done[i] < total
        }
        order = sorted(lengths, key=lambda i: lengths[i] != 1)
        spans = [(i, done[i], done[i] + lengths[i]) for i in order]
        metadata = make_metadata(
            [(end - start, end) for _, start, end in spans],
            [tables[i] for i in order],
            block_size,
            granule,
        )
        device = embeds[0].device
        hidden = model(
            Embedded(torch.cat([embeds[i][start:end] for i, start, end in spans])),
            torch.cat([torch.arange(start, end, device=device) for _, start, end in spans]),
            caches,
            on_device(metadata, device),
        )
        for (i, _, end), rows in zip(spans, hidden.split(metadata.query_lens), strict=True):
            outputs[i].append(rows)
            done[i] = end
    return [torch.cat(rows) for rows in outputs]
