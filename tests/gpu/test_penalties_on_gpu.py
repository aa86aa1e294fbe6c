"""Penalties and log-probabilities on the GPU: as on a CPU, and no waiting for the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlmbatch.config import SamplingParams
from vlmbatch.engine.logprobs import StepLogprobs
from vlmbatch.engine.penalties import PenalisedRows
from vlmbatch.engine.sampler import sample
from vlmbatch.engine.sequence import Sequence
from vlmbatch.engine.step import ScheduledChunk
from vlmbatch.types import Request, TokenLogprob

DEVICE = "cuda"
PENALISED = SamplingParams(
    repetition_penalty=1.3,
    presence_penalty=0.5,
    frequency_penalty=0.25,
    no_repeat_ngram_size=2,
    logprobs=3,
)


def chunk(index: int, params: SamplingParams) -> ScheduledChunk:
    """Of a decode step whose input is the token that the step before samples."""
    length = 40 + index
    tokens = [(7 * index + 3 * i) % 50 for i in range(length)]
    sequence = Sequence(Request(index, tokens, params), length + 9, frozenset())
    sequence.num_computed_tokens = length - 1
    assert sequence.advance(1)
    assert sequence.advance(1)
    return ScheduledChunk(sequence, length, 1, needs_sampling=True)


def sampled(
    chunks: list[ScheduledChunk], input_ids: Tensor, logits: Tensor
) -> tuple[Tensor, StepLogprobs]:
    requests = [each.sequence.request for each in chunks]
    params = [request.sampling for request in requests]
    penalised = PenalisedRows.of(chunks, range(len(chunks)), logits.device)
    assert penalised is not None
    tokens = sample(penalised.apply(logits, input_ids), params, [0] * len(chunks))
    logprobs = StepLogprobs.launch(logits, tokens, requests)
    assert logprobs is not None
    return tokens, logprobs


def told(logprobs: dict[int, TokenLogprob]) -> dict[tuple[int, int], float]:
    return {(row, token): value for row, each in logprobs.items() for token, value in each.top}


def test_a_step_of_rows_with_both_and_rows_without() -> None:
    plain = SamplingParams()
    chunks = [chunk(i, each) for i, each in enumerate([PENALISED, plain, PENALISED, plain])]
    logits = torch.randn(4, 32064, device=DEVICE)
    input_ids = torch.arange(4, device=DEVICE)
    want, expected = sampled(chunks, input_ids.cpu(), logits.cpu())
    sampled(chunks, input_ids, logits)  # kernels are compiled and loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        tokens, logprobs = sampled(chunks, input_ids, logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert torch.equal(tokens.cpu(), want)
    assert told(logprobs.by_row()) == pytest.approx(told(expected.by_row()), abs=1e-4)
