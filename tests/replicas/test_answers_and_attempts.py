"""Requests for several answers and attempts on a replica that is played."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.config import SamplingParams
from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.replicas.composed import ComposedReplica
from vlmbatch.replicas.loops import MAX_PERIOD, MIN_REPEATS, MIN_TOKENS, loops
from vlmbatch.replicas.replica import Completion, Event, RowFailure
from vlmbatch.replicas.several_answers import sampling_of, several_answers
from vlmbatch.types import Request

LOOP = tuple([1, 2] * MIN_TOKENS)


class Played:
    """Plays a replica that answers the request submitted last; the first ``looping`` loop."""

    def __init__(self, looping: int = 0, fails: bool = False) -> None:
        self.requests: list[Request] = []
        self.seen: list[Request] = []
        self._looping = looping
        self._fails = fails

    @property
    def num_unfinished(self) -> int:
        return len(self.requests)

    def submit(self, request: Request, *, stream: bool = False) -> None:
        self.requests.append(request)
        self.seen.append(request)

    def cancel(self, index: int) -> None:
        self.requests = [each for each in self.requests if each.index != index]

    def poll(self) -> list[Event]:
        request = self.requests.pop()
        if self._fails:
            return [RowFailure(request.index, RowError(ErrorCode.ENGINE_ERROR, "no"))]
        self._looping -= 1
        token_ids = LOOP if self._looping >= 0 else (request.sampling.seed,)
        return [Completion(request.index, token_ids, "length", 3, 1.5)]


def answered(played: Any, **sampling: Any) -> Event:
    replica = ComposedReplica(played, [several_answers])
    replica.submit(Request(7, [1], SamplingParams(seed=5, **sampling)))
    found: list[Event] = []
    while replica.num_unfinished:
        found += replica.poll()
    (event,) = found
    assert event.index == 7
    return event


def test_answers_come_in_order_each_with_a_seed_of_its_own() -> None:
    done = answered(played := Played(), n=4, temperature=0.5)
    assert isinstance(done, Completion)
    seeds = [each.token_ids[0] for each in (done, *done.others)]
    assert seeds[0] == 5 and len(set(seeds)) == 4
    assert [each.sampling.seed for each in played.seen] == seeds
    assert {each.sampling.n for each in played.seen} == {1}
    assert [each.is_row for each in played.seen] == [True, False, False, False]
    assert (done.retries, done.loops) == (0, False)


def test_what_loops_is_tried_again_at_rising_temperature() -> None:
    done = answered(played := Played(looping=3), best_of_retries=4)
    assert isinstance(done, Completion)
    assert [each.sampling.temperature for each in played.seen] == [0, 0.1, 0.2, 0.4]
    assert (done.retries, done.loops, done.others) == (3, False, ())
    assert done.token_ids == (played.seen[3].sampling.seed,)
    assert sum(each.is_row for each in played.seen) == 1

    done = answered(played := Played(looping=9), best_of_retries=5, temperature=0.7)
    assert isinstance(done, Completion)
    found = [each.sampling.temperature for each in played.seen]
    assert found == pytest.approx([0.7, 0.8, 0.9, 1, 1, 1])
    assert (done.retries, done.loops, done.token_ids) == (5, True, LOOP)
    assert sampling_of(SamplingParams(temperature=1.5), 0, 2).temperature == 1.5


def test_each_answer_has_attempts_of_its_own() -> None:
    done = answered(played := Played(looping=2), n=3, temperature=0.5, best_of_retries=1)
    assert isinstance(done, Completion)
    assert (done.retries, done.loops, len(played.seen)) == (1, True, 4)
    assert [each.token_ids == LOOP for each in (done, *done.others)] == [False, False, True]


@given(st.integers(0, 2**63 - 1))
def test_no_two_attempts_share_a_seed(seed: int) -> None:
    params = SamplingParams(seed=seed)
    seeds = {
        sampling_of(params, number, attempt).seed for number in range(8) for attempt in range(8)
    }
    assert len(seeds) == 64


def test_one_that_fails_ends_the_row() -> None:
    played = Played(fails=True)
    failure = answered(played, n=3, temperature=1.0)
    assert isinstance(failure, RowFailure) and failure.error.message == "no"
    assert not played.requests


def looks_repeated(token_ids: list[int]) -> bool:
    """The definition, by trying every period."""
    for period in range(1, min(MAX_PERIOD, len(token_ids)) + 1):
        length = period
        while length < len(token_ids) and token_ids[-1 - length] == token_ids[-1 - length + period]:
            length += 1
        if length >= max(MIN_TOKENS, MIN_REPEATS * period):
            return True
    return False


@given(
    st.lists(st.integers(0, 2), max_size=12),
    st.lists(st.integers(0, 1), min_size=1, max_size=40),
    st.integers(1, 70),
    st.integers(0, 39),
)
def test_loops_are_what_ends_in_repetitions(
    before: list[int], unit: list[int], times: int, more: int
) -> None:
    token_ids = [*before, *unit * times, *unit[:more]]
    assert loops(token_ids, "length") == looks_repeated(token_ids)


def test_what_is_no_loop() -> None:
    assert loops(LOOP, "length") and not loops(LOOP, "stop")
    assert not loops([4] * (MIN_TOKENS - 1), "length")
    assert loops([4] * MIN_TOKENS, "length")
    assert not loops([*LOOP, 9], "length")
    longest = list(range(MAX_PERIOD))
    assert loops(longest * MIN_REPEATS, "length")
    assert not loops([*longest, -1] * MIN_REPEATS, "length")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n": 0}, "n must be from 1 to 128, got 0"),
        ({"best_of_retries": 11}, "best_of_retries must be from 0 to 10, got 11"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens must be .* max_tokens, which is 4, got 5"),
        ({"choices": "a,b", "n": 2}, "choices cannot be asked for with n, got 2"),
        ({"choices": "a,b", "logprobs": 0}, "choices cannot be asked for with logprobs, got 0"),
        ({"choices": "a,b", "best_of_retries": 1}, "choices cannot .* best_of_retries, got 1"),
    ],
)
def test_parameters_that_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingParams(**asked)
    params = replace(SamplingParams(), **dict.fromkeys(asked))
    assert params.n == 1
