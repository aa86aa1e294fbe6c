"""Which rows of a step follow a grammar, and the tokens that it lets them have."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor
from vlmbatch_kernels.token_masks import mask_tokens_

from vlmbatch.engine.grammars import Constraint, fill_masks


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Of those of a step's sampled rows that follow a grammar: M of them.

    ``rows``: (M,) int64, which they are. ``masks``: (M, W) int32, see ``mask_tokens_``.
    """

    rows: Tensor
    masks: Tensor

    @classmethod
    def of(
        cls, answers: Seq[tuple[int, Constraint, list[int]]], device: torch.device
    ) -> TokenMasks | None:
        """Computed on the host, while the device computes the logits that they are for.

        ``answers``: row, grammar, and all tokens so far.
        """
        if not answers:
            return None
        rows, constraints, outputs = zip(*answers, strict=True)
        pin = device.type == "cuda"
        masks = torch.empty(len(rows), len(constraints[0].ends), dtype=torch.int32, pin_memory=pin)
        fill_masks(constraints, outputs, masks.numpy())
        places = torch.tensor(rows, pin_memory=pin)
        return cls(places.to(device, non_blocking=pin), masks.to(device, non_blocking=pin))

    def apply_(self, logits: Tensor) -> Tensor:
        """``logits`` (n, V) without the tokens that are ruled out, in place."""
        return mask_tokens_(logits, self.rows, self.masks)
