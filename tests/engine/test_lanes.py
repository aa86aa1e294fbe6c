"""What a lane knows of its steps."""

from __future__ import annotations

import torch

from vlmbatch.config import SamplingParams
from vlmbatch.engine.lanes import Lane
from vlmbatch.engine.model_runner import LaunchedStep
from vlmbatch.engine.sequence import Sequence
from vlmbatch.types import Request


def sequence(index: int) -> Sequence:
    return Sequence(Request(index, [1, 2], SamplingParams()), 10, frozenset())


def test_sequences_of_steps_that_sample_nothing_of_them_count_as_under_way() -> None:
    whole, part, later = (sequence(index) for index in range(3))
    lane = Lane()
    step = LaunchedStep.of([whole], torch.tensor([7]))
    lane.push(step, [whole, part])
    lane.push(LaunchedStep.of([], torch.tensor([])), [later])
    assert lane.sequences == {whole, part, later}
    assert lane.pop() is step
    assert lane.sequences == {later}
    lane.clear()
    assert lane.sequences == set() and not lane.under_way
