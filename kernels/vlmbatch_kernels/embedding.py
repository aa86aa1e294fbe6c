"""The token embeddings of a step, image features among them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch_kernels.dispatch import triton_on_gpu


@triton_on_gpu
def embed_with_features(
    input_ids: Tensor, table: Tensor, features: Tensor, feature_rows: Tensor
) -> Tensor:
    """Look tokens up in ``table``, and take a row of ``features`` for those that stand for one.

    ``input_ids``: (T,) int64. ``table``: (V, hidden). ``features``: (M, hidden) in the dtype of
    ``table``, M at least 1. ``feature_rows``: (T,) int64, -1 for a token of text. Returns
    (T, hidden).
    """
    placed = (feature_rows >= 0)[:, None]
    rows = features.index_select(0, feature_rows.clamp(min=0))
    return torch.where(placed, rows, F.embedding(input_ids, table))
