"""Log-probabilities of prompts: what the model would have said in the place of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor
from vlmbatch_kernels.logprobs import token_logprobs

from vlmbatch.engine.sequence import Sequence
from vlmbatch.engine.step import ScheduledChunk
from vlmbatch.models.upload import to_device
from vlmbatch.types import TokenLogprob

_ROWS_AT_ONCE = 256  # whose logits, as wide as the vocabulary, are in memory together


@dataclass(frozen=True, slots=True)
class ScoredTokens:
    """Prompt tokens that a step tells of: M of them, each with the query before it.

    ``sequences`` and ``places``: whose they are, and where in its prompt. ``queries``: the chunk of
    each query, and where in the chunk it is.
    """

    sequences: list[Sequence]
    places: list[int]
    queries: list[tuple[int, int]]

    @classmethod
    def of(cls, chunks: Seq[ScheduledChunk]) -> ScoredTokens | None:
        """Those that the step's chunks come to; None where no prompt asks."""
        found = cls([], [], [])
        for number, chunk in enumerate(chunks):
            sequence = chunk.sequence
            if sequence.request.prompt_logprobs is None:
                continue
            end = min(chunk.start + chunk.length, sequence.num_prompt_tokens - 1)
            for place in range(chunk.start, end):
                found.sequences.append(sequence)
                found.places.append(place + 1)
                found.queries.append((number, place - chunk.start))
        return found if found.places else None


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """``values`` and ``ids``: (M, 1 + K), on the host once the device is done."""

    scored: ScoredTokens
    values: Tensor
    ids: Tensor

    @classmethod
    def launch(
        cls, scored: ScoredTokens, hidden: Tensor, compute_logits: Callable[[Tensor], Tensor]
    ) -> PromptLogprobs:
        """Start computing them. ``hidden``: (M, E), of the queries."""
        places = zip(scored.sequences, scored.places, strict=True)
        token_ids = torch.tensor([sequence.token_ids[place] for sequence, place in places])
        token_ids = to_device(token_ids, hidden.device)
        count = max(sequence.request.prompt_logprobs or 0 for sequence in scored.sequences)
        values, ids = [], []
        for first in range(0, len(hidden), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            found = token_logprobs(compute_logits(hidden[rows]), token_ids[rows], count)
            values.append(found[0])
            ids.append(found[1])
        on_host = (torch.cat(each).to("cpu", non_blocking=True) for each in (values, ids))
        return cls(scored, *on_host)

    def told(self) -> Iterator[tuple[Sequence, int, TokenLogprob]]:
        """Each token's by its sequence and its place in the prompt, after the step is done."""
        scored = self.scored
        lines = zip(self.values.tolist(), self.ids.tolist(), strict=True)
        for sequence, place, (values, ids) in zip(
            scored.sequences, scored.places, lines, strict=True
        ):
            end = 1 + (sequence.request.prompt_logprobs or 0)
            top = tuple(zip(ids[1:end], values[1:end], strict=True))
            yield sequence, place, TokenLogprob(ids[0], values[0], top)
