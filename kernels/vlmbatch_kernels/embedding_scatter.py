"""Image features into the token embeddings of a step."""

from __future__ import annotations

from torch import Tensor


def scatter_embeddings(embeds: Tensor, features: Tensor, indices: Tensor) -> Tensor:
    """Overwrite rows of ``embeds`` in place and return it.

    ``embeds``: (T, hidden). ``features``: (M, hidden), converted to the dtype of ``embeds``.
    ``indices``: (M,) int64, distinct rows of ``embeds``.
    """
    return embeds.index_copy_(0, indices, features.to(embeds.dtype))
