"""Log-probabilities of a step's tokens, on their way from the device."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor
from vlmbatch_kernels.logprobs import token_logprobs

from vlmbatch.config import SamplingParams
from vlmbatch.types import TokenLogprob


@dataclass(frozen=True, slots=True)
class StepLogprobs:
    """Of those of a step's sampled tokens whose rows ask for them: M of them.

    ``rows``: which they are; ``counts``: of the likeliest tokens that each asks for. ``values`` and
    ``ids``: (M, 1 + K), on the host once the device is done.
    """

    rows: list[int]
    counts: list[int]
    values: Tensor
    ids: Tensor

    @classmethod
    def launch(
        cls, logits: Tensor, tokens: Tensor, params: Seq[SamplingParams]
    ) -> StepLogprobs | None:
        """Start computing them; None where no row asks. ``logits``: (n, V), ``tokens``: (n,)."""
        asked = [(row, p.logprobs) for row, p in enumerate(params) if p.logprobs is not None]
        if not asked:
            return None
        rows, counts = [row for row, _ in asked], [count for _, count in asked]
        if len(rows) < len(tokens):
            chosen = torch.tensor(rows).to(logits.device, non_blocking=True)
            logits, tokens = logits.index_select(0, chosen), tokens.index_select(0, chosen)
        values, ids = token_logprobs(logits, tokens, max(counts))
        on_host = (each.to("cpu", non_blocking=True) for each in (values, ids))
        return cls(rows, counts, *on_host)

    def by_row(self) -> dict[int, TokenLogprob]:
        """Those of each row that asked, after the step is done."""
        found = {}
        lines = zip(self.values.tolist(), self.ids.tolist(), strict=True)
        for row, count, (values, ids) in zip(self.rows, self.counts, lines, strict=True):
            top = tuple(zip(ids[1 : count + 1], values[1 : count + 1], strict=True))
            found[row] = TokenLogprob(ids[0], values[0], top)
        return found
