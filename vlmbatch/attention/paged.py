"""What backends share: keys and values go to the pool, then the queries attend over it."""

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

    def paged(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: LayerKVCache,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
    ) -> Tensor:
        assert cache.key.dtype == key.dtype, f"cache of {cache.key.dtype}, keys of {key.dtype}"
        cache.key.index_copy_(0, metadata.slot_mapping, key)
        cache.value.index_copy_(0, metadata.slot_mapping, value)
        return self._attend(query, cache, metadata, spec)

    def attend(
        self,
        query: Tensor,
        cache: LayerKVCache,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        sampled: SampledQueries | None = None,
    ) -> Tensor:
        assert cache.key.dtype == query.dtype, f"cache of {cache.key.dtype}, {query.dtype} queries"
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
