"""Logits of whole prompts from a model that is driven step by step over a paged pool."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from paged_batch import make_metadata, on_device, shuffled_tables
from torch import Tensor

from vlmbatch.attention.base import AttentionBackend, LayerKVCache
from vlmbatch.models.processor import EncodedPrompt
from vlmbatch.models.text_model import TextModel


def paged_logits(
    model: TextModel,
    backend: AttentionBackend,
    prompts: Sequence[EncodedPrompt],
    features: Sequence[list[Tensor]],
    image_token_id: int,
    chunk: int,
) -> list[Tensor]:
    """Of all prompts (tokens, V), side by side over a shuffled pool, ``chunk`` tokens a step.

    ``features``: of the images of each prompt.
    """
    page, granule = backend.block_size, backend.granule
    weight = model.language_model.embed_tokens.weight
    totals = [len(prompt.token_ids) for prompt in prompts]
    tables, slots = shuffled_tables(totals, page, granule, torch.Generator().manual_seed(1))
    caches = [
        LayerKVCache(*weight.new_zeros(2, slots + page, spec.num_kv_heads, spec.head_dim))
        for spec in model.attention_specs
    ]
    places = _positions(prompts)
    outputs: list[list[Tensor]] = [[] for _ in prompts]
    for start in range(0, max(totals), chunk):
        spans = [(i, start, min(start + chunk, n)) for i, n in enumerate(totals) if start < n]
        spans.sort(key=lambda span: span[2] - span[1] != 1)
        lengths = [(end - start, end) for _, start, end in spans]
        metadata = make_metadata(lengths, [tables[i] for i, *_ in spans], page, granule)
        metadata = on_device(metadata, weight.device.type)
        ids = torch.cat([torch.tensor(prompts[i].token_ids[a:b]) for i, a, b in spans])
        positions = np.concatenate([places[i][:, a:b] for i, a, b in spans], axis=1)
        parts, rows, count = [], [], 0
        for i, first, end in spans:
            is_image = torch.tensor(prompts[i].token_ids) == image_token_id
            own = torch.where(is_image, is_image.cumsum(0) - 1 + count, -1)
            rows.append(own[first:end])
            parts += features[i]
            count += sum(map(len, features[i]))
        placed = (torch.cat(parts), torch.cat(rows).to(weight.device)) if parts else ()
        embedded = model.embed(ids.to(weight.device), *placed)
        at = torch.from_numpy(positions).to(weight.device)
        hidden = model(embedded, at if len(at) > 1 else at[0], caches, metadata)
        logits = model.compute_logits(hidden)
        for (i, *_), part in zip(spans, logits.split(metadata.query_lens), strict=True):
            outputs[i].append(part)
    return [torch.cat(parts) for parts in outputs]


def _positions(prompts: Sequence[EncodedPrompt]) -> list[NDArray[np.int64]]:
    """(rows, tokens) each, in three rows where any prompt has them."""
    num_rows = 3 if any(prompt.positions is not None for prompt in prompts) else 1
    return [
        np.tile(np.arange(len(prompt.token_ids)), (num_rows, 1))
        if prompt.positions is None
        else prompt.positions
        for prompt in prompts
    ]
