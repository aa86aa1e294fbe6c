"""Log-probabilities of a step's tokens, on their way from the device."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor
from vlmbatch_kernels.logprobs import token_logprobs

from vlmbatch.models.upload import to_device
from vlmbatch.types import Request, TokenLogprob


@dataclass(frozen=True, slots=True)
class StepLogprobs:
    """Of those of a step's sampled tokens whose rows ask for them: M of them.

    ``rows``: which they are; ``counts``: of the likeliest tokens that each asks for; ``scored``:
    the tokens that each wants to know of. ``values`` and ``ids``: (M, 1 + K + S), on the host once
    the device is done.
    """

    rows: list[int]
    counts: list[int]
    scored: list[tuple[int, ...]]
    values: Tensor
    ids: Tensor

    @classmethod
    def launch(cls, logits: Tensor, tokens: Tensor, requests: Seq[Request]) -> StepLogprobs | None:
        """Start computing them; None where no row asks. ``logits``: (n, V), ``tokens``: (n,)."""
        rows = [
            row for row, r in enumerate(requests) if r.scored or r.sampling.logprobs is not None
        ]
        if not rows:
            return None
        counts = [requests[row].sampling.logprobs or 0 for row in rows]
        scored = [requests[row].scored for row in rows]
        device = logits.device
        if len(rows) < len(tokens):
            chosen = to_device(torch.tensor(rows), device)
            logits, tokens = logits.index_select(0, chosen), tokens.index_select(0, chosen)
        padded = None
        if longest := max(map(len, scored)):
            lines = [[*ids, *[0] * (longest - len(ids))] for ids in scored]
            padded = to_device(torch.tensor(lines), device)
        values, ids = token_logprobs(logits, tokens, max(counts), padded)
        on_host = (each.to("cpu", non_blocking=True) for each in (values, ids))
        return cls(rows, counts, scored, *on_host)

    def by_row(self) -> dict[int, TokenLogprob]:
        """Those of each row that asked, after the step is done."""
        found = {}
        first = self.ids.shape[1] - max(map(len, self.scored))  # where the scored ones begin
        lines = zip(self.values.tolist(), self.ids.tolist(), strict=True)
        for number, (values, ids) in enumerate(lines):
            start, end = 1, 1 + self.counts[number]
            if scored := self.scored[number]:
                start, end = first, first + len(scored)
            top = tuple(zip(ids[start:end], values[start:end], strict=True))
            found[self.rows[number]] = TokenLogprob(ids[0], values[0], top)
        return found
