"""Prefill runs beside decode where there is much of both, and only there."""

from __future__ import annotations

from typing import Any

import pytest
from llava_7b import TEXT

from vlmbatch.config import SamplingParams
from vlmbatch.engine.block_pool import BlockPool
from vlmbatch.engine.overlap import OverlapPolicy
from vlmbatch.engine.scheduler import Scheduler
from vlmbatch.engine.sequence import Sequence
from vlmbatch.types import Request


def sequence(first: int, prompt: int, max_tokens: int) -> Sequence:
    tokens = [first, *range(1, prompt)]
    request = Request(first, tokens, SamplingParams(max_tokens=max_tokens, ignore_eos=True))
    return Sequence(request, prompt + max_tokens, frozenset())


def scheduler_with(running: int, max_tokens: int, waiting: int = 100, same: bool = False):
    scheduler = Scheduler(BlockPool(8000, 16), 16, 512, 8192)
    for index in range(running):
        scheduler.add(sequence(0 if same else 1000 + index, 600, max_tokens))
    while scheduler.waiting:
        for chunk in scheduler.schedule():
            if chunk.needs_sampling:
                scheduler.update(chunk.sequence, 7)
    for index in range(waiting):
        scheduler.add(sequence(5000 + index, 600, max_tokens))
    return scheduler


@pytest.fixture
def policy() -> OverlapPolicy:
    return OverlapPolicy(TEXT, 2, 2)


def test_long_answers_are_decoded_beside_prompts(policy: OverlapPolicy) -> None:
    assert policy.wants_overlap(scheduler_with(130, 128), overlapping=False)


@pytest.mark.parametrize(
    "state",
    [
        {"running": 40, "max_tokens": 4},  # short answers ride along with prompts
        {"running": 4, "max_tokens": 128},  # few to decode
        {"running": 130, "max_tokens": 128, "waiting": 5},  # less than a step of prompts
        {"running": 130, "max_tokens": 40, "same": True},  # one prefix, read about once
    ],
)
def test_other_work_has_the_gpu_to_itself(policy: OverlapPolicy, state: dict[str, Any]) -> None:
    assert not policy.wants_overlap(scheduler_with(**state), overlapping=False)


def test_lanes_go_on_with_the_last_prompts_and_end_with_them(policy: OverlapPolicy) -> None:
    assert policy.wants_overlap(scheduler_with(130, 128, waiting=1), overlapping=True)
    assert not policy.wants_overlap(scheduler_with(130, 128, waiting=0), overlapping=True)


def test_answers_that_end_early_teach_what_to_expect(policy: OverlapPolicy) -> None:
    scheduler = scheduler_with(130, 128)
    for index in range(20):
        finished = sequence(index, 600, 128)
        finished.num_computed_tokens = 600
        finished.token_ids += [7] * 3
        policy.observe(finished)
    assert not policy.wants_overlap(scheduler, overlapping=False)


def test_sequences_of_a_failed_step_are_tried_one_lane_at_a_time(policy: OverlapPolicy) -> None:
    scheduler = scheduler_with(130, 128)
    scheduler.abort_step(scheduler.schedule())
    assert not policy.wants_overlap(scheduler, overlapping=True)
