"""Which sequences of a step follow a grammar, and the tokens that it lets them have."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor
from vlmbatch_kernels.token_masks import mask_tokens_

from vlmbatch.engine.grammars import Grammars
from vlmbatch.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Those of a step's sampled sequences that follow a grammar: M of them.

    ``rows``: (M,) int64, which they are. ``masks``: (M, W) int32, see ``mask_tokens_``.
    """

    rows: Tensor
    masks: Tensor

    @classmethod
    def of(
        cls, sampled: Seq[Sequence], grammars: Grammars, device: torch.device
    ) -> TokenMasks | None:
        """Computed on the host, while the device computes the logits that they are for.

        All tokens of the answers are known. Sequences that have ended meanwhile have none.
        """
        rows, constraints, outputs = [], [], []
        for row, sequence in enumerate(sampled):
            if sequence.constraint is not None and not sequence.finished:
                rows.append(row)
                constraints.append(sequence.constraint)
                outputs.append(sequence.output_token_ids)
        if not rows:
            return None
        pin = device.type == "cuda"
        masks = torch.empty(len(rows), grammars.num_words, dtype=torch.int32, pin_memory=pin)
        grammars.fill(constraints, outputs, masks.numpy())
        places = torch.tensor(rows, pin_memory=pin)
        return cls(places.to(device, non_blocking=pin), masks.to(device, non_blocking=pin))

    def apply_(self, logits: Tensor) -> Tensor:
        """``logits`` (n, V) without the tokens that are ruled out, in place."""
        return mask_tokens_(logits, self.rows, self.masks)
