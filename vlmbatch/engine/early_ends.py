"""Tokens that would end an answer before it has as many tokens as asked for (``min_tokens``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmbatch.models.upload import to_device


@dataclass(frozen=True, slots=True)
class EarlyEnds:
    """``places``: rows of a step's logits, each with a token that cannot come next there."""

    places: list[tuple[int, int]]

    @classmethod
    def of(cls, ends: Mapping[int, Iterable[int]]) -> EarlyEnds | None:
        """``ends``: by row the tokens that would end it now, where none should; None: none."""
        places = [(row, token_id) for row, tokens in ends.items() for token_id in tokens]
        return cls(places) if places else None

    def rule_out(self, logits: Tensor) -> Tensor:
        """``logits`` (n, V) with minus infinity there; the host does not wait."""
        vocab_size = logits.shape[1]  # a user's stop token may be beyond it
        known = [place for place in self.places if place[1] < vocab_size]
        indices = torch.tensor(known, dtype=torch.int64).reshape(-1, 2)
        rows, tokens = to_device(indices, logits.device).T
        return logits.index_put((rows, tokens), logits.new_full((), -torch.inf))
