"""Positions of a step: as a prompt brings them, and behind it the same in all rows."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vlmbatch.config import SamplingParams
from vlmbatch.engine.batch import StepInputs, build_step_inputs
from vlmbatch.engine.block_pool import Block
from vlmbatch.engine.sequence import Sequence
from vlmbatch.engine.step import ScheduledChunk
from vlmbatch.types import Request

PAGE = 16


@st.composite
def chunks(draw: st.DrawFn) -> list[ScheduledChunk]:
    """Parts of prompts, of answers, and of both, as after a preemption."""
    found = []
    for index in range(draw(st.integers(1, 5))):
        prompt, answer = draw(st.integers(1, 12)), draw(st.integers(0, 8))
        rows = draw(st.sampled_from([None, 1, 3]))
        positions: NDArray[np.int64] | None = None
        if rows is not None:
            values = draw(st.lists(st.integers(0, 50), min_size=3 * prompt, max_size=3 * prompt))
            positions = np.array(values).reshape(3, prompt)
            positions = positions if rows == 3 else positions[0]
        last = draw(st.integers(0, 60) if rows is not None else st.none() | st.integers(0, 60))
        request = Request(
            index, [7] * prompt, SamplingParams(), positions=positions, next_position=last
        )
        sequence = Sequence(request, 100, frozenset())
        sequence.token_ids += [8] * answer
        sequence.blocks = [Block(0, 1), Block(1, 1)]
        start = draw(st.integers(0, prompt + answer - 1))
        length = draw(st.integers(1, prompt + answer - start))
        samples = start + length == prompt + answer
        found.append(ScheduledChunk(sequence, start, length, samples))
    return found


def build(step: list[ScheduledChunk]) -> StepInputs:
    return build_step_inputs(step, PAGE, PAGE, torch.device("cpu"))


def position(request: Request, token: int) -> list[int]:
    """Of one token, in three rows."""
    prompt = len(request.token_ids)
    if token >= prompt and request.next_position is not None:
        return [request.next_position + token - prompt] * 3
    if request.positions is None:
        return [token] * 3
    own = request.positions[..., token]
    return own.tolist() if own.ndim else [int(own)] * 3


@settings(deadline=None)
@given(chunks())
def test_every_token_is_at_the_position_that_its_request_gives_it(
    step: list[ScheduledChunk],
) -> None:
    inputs = build(step)
    ordered = sorted(step, key=lambda chunk: chunk.length != 1)
    expected = [
        position(chunk.sequence.request, token)
        for chunk in ordered
        for token in range(chunk.start, chunk.start + chunk.length)
    ]
    positions = inputs.positions
    mixed = any(
        chunk.sequence.request.positions is not None
        and chunk.sequence.request.positions.ndim == 2
        and chunk.start < len(chunk.sequence.request.token_ids)
        for chunk in step
    )
    assert positions.ndim == (2 if mixed else 1)
    assert positions.expand(3, -1).T.tolist() == expected


@settings(deadline=None)
@given(chunks())
def test_steps_of_answers_alone_can_be_captured(step: list[ScheduledChunk]) -> None:
    decodes = [
        ScheduledChunk(chunk.sequence, chunk.sequence.num_tokens - 1, 1, needs_sampling=True)
        for chunk in step
        if chunk.sequence.num_tokens > chunk.sequence.num_prompt_tokens
    ]
    if decodes:
        assert build(decodes).is_decode
