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

    def apply_(self, scores: Tensor, logits: Tensor | None = None) -> Tensor:
        """``scores`` (n, V) without the tokens that are ruled out, in place.

        ``logits`` (n, V), the model's own, stand in for a row all of whose tokens are ruled out by
        one or the other, as where a grammar asks for what ``no_repeat_ngram_size`` forbids; None:
        there are no such rows. The grammar is followed.
        """
        scores = mask_tokens_(scores, self.rows, self.masks)
        if logits is None:
            return scores
        own = mask_tokens_(logits.to(scores.dtype, copy=True), self.rows, self.masks)
        return own.where(scores.amax(dim=-1, keepdim=True).isneginf(), scores)
