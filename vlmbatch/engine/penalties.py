"""Which sequences of a step have penalties, and the tokens that these look back on."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from vlmbatch_kernels.penalties import penalise

from vlmbatch.config import SamplingParams
from vlmbatch.engine.step import ScheduledChunk
from vlmbatch.models.upload import to_device


@dataclass(frozen=True, slots=True)
class PenalisedRows:
    """Those of a step's sampled sequences that have penalties: M of them.

    ``rows``: (M,) int64, which they are. ``tokens``: (M, L) int64, ``num_output``: (M,) int64,
    ``factors``: (3, M) float32, ``ngram_sizes``: see ``penalise``. ``pending``: (2, P) int64, rows
    of ``tokens`` whose last token the step before samples, and where in the step's input ids it is.
    """

    rows: Tensor
    tokens: Tensor
    num_output: Tensor
    factors: Tensor
    ngram_sizes: list[int]
    pending: Tensor

    @classmethod
    def of(
        cls, sampled: Seq[ScheduledChunk], last_tokens: Seq[int], device: torch.device
    ) -> PenalisedRows | None:
        """Of the chunks that sample a token; ``last_tokens``: where in the step each one ends."""
        rows = [row for row, chunk in enumerate(sampled) if chunk.sequence.history is not None]
        if not rows:
            return None
        histories = []
        pending: list[tuple[int, int]] = []
        num_output = []
        for number, row in enumerate(rows):
            chunk = sampled[row]
            sequence, end = chunk.sequence, chunk.start + chunk.length
            assert sequence.history is not None
            num_known = min(sequence.num_known_tokens, end)
            histories.append(sequence.history.up_to(sequence.token_ids, num_known, end))
            num_output.append(end - sequence.num_prompt_tokens)
            if end > num_known:
                pending.append((number, last_tokens[row]))
        tokens = np.full((len(rows), max(map(len, histories))), -1, np.int32)
        for line, history in zip(tokens, histories, strict=True):
            line[len(line) - len(history) :] = history
        params = [sampled[row].sequence.request.sampling for row in rows]
        return cls(
            to_device(torch.tensor(rows), device),
            to_device(tokens, device).long(),
            to_device(torch.tensor(num_output), device),
            to_device(penalty_factors(params), device),
            [p.no_repeat_ngram_size for p in params],
            to_device(torch.tensor(pending, dtype=torch.int64).reshape(-1, 2).T, device),
        )

    def apply(self, logits: Tensor, input_ids: Tensor) -> Tensor:
        """``logits`` (n, V) with these rows' penalties, in float32; the host does not wait.

        ``input_ids``: (T,) of the step, pending ones filled in.
        """
        if self.pending.shape[1]:
            rows, places = self.pending
            self.tokens[rows, -1] = input_ids[places]
        everything = len(self.rows) == len(logits)
        chosen = logits if everything else logits.index_select(0, self.rows)
        scores = penalise(chosen, self.tokens, self.num_output, self.factors, self.ngram_sizes)
        return scores if everything else logits.float().index_copy(0, self.rows, scores)


def penalty_factors(params: Seq[SamplingParams]) -> Tensor:
    """(3, n) float32: how much repetition, presence and frequency weigh, on the host."""
    names = ("repetition_penalty", "presence_penalty", "frequency_penalty")
    return torch.tensor([[getattr(p, name) for p in params] for name in names])
