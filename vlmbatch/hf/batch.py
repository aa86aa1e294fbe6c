"""Which rows can be in one batch, and their tensors put together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from vlmbatch.types import ProcessedInputs, Request

# The model's arguments that have a column a token: (1, T) or (1, T, ...).
_BY_TOKEN = {
    "attention_mask",
    "cross_attention_mask",
    "image_embeds_position_mask",
    "input_ids",
    "mm_token_type_ids",
    "token_type_ids",
}


def signature(request: Request) -> Hashable:
    """Equal for requests whose tensors can be put together; others have one of their own."""
    inputs = request.inputs
    assert inputs is not None
    parts = []
    for name, value in sorted(inputs.tensors.items()):
        if not isinstance(value, Tensor | np.ndarray) or value.ndim == 0:
            return request.index
        shape = value.shape[2:] if name in _BY_TOKEN else value.shape[1:]
        parts.append((name, value.dtype, value.ndim, tuple(shape)))
    return inputs.num_images > 0, tuple(parts)


def collate(requests: Sequence[Request], pad_token_id: int) -> dict[str, Any]:
    """The model's arguments for a batch: prompts padded on the left to the longest, images as many
    as there are, in order.

    Each is what the processor made of the row alone: no row's images are padded to another's.
    """
    rows = [_tensors(request.inputs) for request in requests if request.inputs is not None]
    assert len(rows) == len(requests)
    longest = max(len(request.token_ids) for request in requests)
    batch: dict[str, Any] = {}
    for name, first in rows[0].items():
        if len(rows) == 1:
            batch[name] = first
        elif name in _BY_TOKEN:
            fill = pad_token_id if name == "input_ids" else 0
            batch[name] = torch.cat([_padded(row[name], longest, fill) for row in rows])
        else:
            batch[name] = torch.cat([row[name] for row in rows])
    return batch


def _tensors(inputs: ProcessedInputs) -> dict[str, Any]:
    """The row's tensors, which are arrays where they have come from another process."""
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in inputs.tensors.items()
    }


def _padded(value: Tensor, length: int, fill: int) -> Tensor:
    """(1, T, ...) to (1, length, ...), filled before the first token."""
    before = [0, 0] * (value.ndim - 2) + [length - value.shape[1], 0]
    return pad(value, before, value=fill)
