"""What the engine and the models know of attention.

Letters in shapes: T tokens of a step, B sequences of a step, H query heads, K key-value heads,
D head size, S slots of the paged pool.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One layer's attention. ``sliding_window`` counts the keys a query sees, itself included."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    causal: bool = True
    sliding_window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class LayerKVCache:
    """One layer's share of the paged pool; ``key`` and ``value``: (S, K, D).

    ``scales``: (2, K) float32, of keys and of values, where they are in e4m3.
    """

    key: Tensor
    value: Tensor
    scales: Tensor | None = None


@dataclass(slots=True)
class AttentionMetadata:
    """Where the tokens of one step stand. Sequences with a single query token come first.

    ``cu_seqlens_q``: (B + 1,) int32, offsets of each sequence's query tokens among the T.
    ``seqlens_k``: (B,) int32, keys of each sequence, those of this step included.
    ``block_table``: (B, max_blocks) int32, first slot of each page divided by the granule.
    ``slot_mapping``: (T,) int64, slot that each token's key and value are written to.
    ``query_lens`` and ``seqlens_k_host``: the same numbers on the host, for planning.
    ``sampled``: the queries behind which a token is sampled, where they are fewer than T. Nothing
    else of the last layer is needed.
    ``shared``: KV prefixes that single queries have in common, where reading them once pays.
    ``plans``: what a backend derives from these once a step, keyed by layer specification.
    """

    cu_seqlens_q: Tensor
    seqlens_k: Tensor
    block_table: Tensor
    slot_mapping: Tensor
    query_lens: list[int]
    seqlens_k_host: list[int]
    num_decodes: int
    max_seqlen_q: int
    max_seqlen_k: int
    sampled: SampledQueries | None = None
    shared: SharedPrefixes | None = None
    plans: dict[AttentionSpec, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Tiles of adjacent single queries, whose first keys can be read through the tile's first one.

    ``lens``: (num_decodes,) int32, keys of each sequence that it shares with its whole tile; 0 for
    none. ``tiles``: (n, 2) int32, first sequence and how many; 0 of them is padding.
    """

    lens: Tensor
    tiles: Tensor


@dataclass(frozen=True, slots=True)
class SampledQueries:
    """Some of a step's queries. ``tokens``: (n,) int64, their indices among the T.

    ``metadata`` shows each as a sequence with a single query; it writes nothing to the cache.
    """

    tokens: Tensor
    metadata: AttentionMetadata


class AttentionBackend(Protocol):
    """One way of computing attention over the paged pool."""

    name: str
    captures_decodes: bool  # whether steps of single queries can be captured in a CUDA graph
    shares_prefixes: bool  # whether it makes use of ``AttentionMetadata.shared``
    block_size: int  # tokens in a full page of a sequence's block table
    granule: int  # a page may be shorter than block_size in steps of this many tokens

    def attend(
        self,
        query: Tensor,
        cache: LayerKVCache,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        sampled: SampledQueries | None = None,
    ) -> Tensor:
        """Attend over the pool, where the keys and values of the whole step have been written.

        So a sequence may read pages that another fills in the same step. ``query``: (T, H, D).
        Returns (T, H, D), or (n, H, D) when only the queries of ``sampled`` are to attend.
        """
        ...

    def varlen(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        spec: AttentionSpec,
    ) -> Tensor:
        """Attend without a cache, each sequence within itself, as vision towers do.

        The B sequences, images or windows of them, lie behind each other: ``query`` (T, H, D),
        ``key`` and ``value`` (T, K, D), ``cu_seqlens`` (B + 1,) int32 their offsets. ``max_seqlen``
        is the length of the longest; where all have it, that is found out without a look at
        ``cu_seqlens``. Returns (T, H, D).
        """
        ...
