"""What backends share: which of a step's queries attend over the pool."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from vlmbatch.attention.base import (
    AttentionMetadata,
    AttentionSpec,
    LayerKVCache,
    SampledQueries,
)


class PagedBackend(ABC):
    """``AttentionBackend`` but for the attention itself."""

    def attend(
        self,
        query: Tensor,
        cache: LayerKVCache,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        sampled: SampledQueries | None = None,
    ) -> Tensor:
        same = cache.key.dtype == query.dtype
        assert same or cache.scales is not None, f"{cache.key.dtype} keys, {query.dtype} queries"
        if sampled is not None:
            query, metadata = query[sampled.tokens], sampled.metadata
        if not metadata.query_lens:
            return query  # no token is sampled in this step
        return self._attend(query, cache, metadata, spec)

    @abstractmethod
    def _attend(
        self, query: Tensor, cache: LayerKVCache, metadata: AttentionMetadata, spec: AttentionSpec
    ) -> Tensor:
        """Attend over the pool with the queries of at least one sequence: (T, H, D) to the same."""


def is_plain(spec: AttentionSpec) -> bool:
    """Whether each query attends to all keys alike, as many heads of queries as of keys."""
    unlimited = not spec.causal and spec.sliding_window is None and not spec.softcap
    return unlimited and spec.num_heads == spec.num_kv_heads
