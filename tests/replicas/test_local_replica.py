"""Every request submitted ends exactly once, with what a plain fold over its tokens says."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import fake_model
import pytest
from fake_model import FakeModel, reference, small_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from letter_tokenizer import LetterTokenizer
from unruly import (
    BROKEN,
    REFUSED,
    Driver,
    End,
    Plan,
    UnrulyEngine,
    fold,
    plans,
    samplings,
    text_of,
)

from vlmbatch.config import SamplingParams
from vlmbatch.errors import RowError
from vlmbatch.replicas.local import LocalReplica
from vlmbatch.replicas.replica import RowFailure
from vlmbatch.types import Request


def check_nothing_is_left(replica: LocalReplica) -> None:
    assert replica.num_unfinished == 0
    assert not replica._under_way and not replica._sequences and not replica._refused


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(plans, samplings, st.booleans()), min_size=1, max_size=8),
    st.integers(0, 2**32).map(random.Random),
)
def test_every_request_ends_once_as_a_fold_over_its_tokens_says(
    rows: list[tuple[Plan, SamplingParams, bool]], rng: random.Random
) -> None:
    engine = UnrulyEngine([plan for plan, _, _ in rows], rng)
    replica = LocalReplica(engine, LetterTokenizer())  # type: ignore[arg-type]
    driver = Driver(replica)
    given_up: set[int] = set()
    to_submit = list(range(len(rows)))
    while to_submit or replica.num_unfinished:
        action = rng.random()
        if to_submit and action < 0.4:
            index = to_submit.pop()
            _, sampling, stream = rows[index]
            driver.submit(Request(index, [index], sampling), stream)
        elif action < 0.5 and driver.told:
            index = rng.choice(list(driver.told))
            if index in driver.open:
                driver.cancel(index)
                if rng.random() < 0.5:  # its index may be used again at once
                    to_submit.append(index)
                else:
                    given_up.add(index)
            else:
                driver.cancel(index)
        else:
            driver.poll()
    for index, (plan, sampling, _) in enumerate(rows):
        assert driver.told[index].end == (None if index in given_up else fold(plan, sampling))
    check_nothing_is_left(replica)
    assert engine.num_unfinished == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(plans, samplings), min_size=1, max_size=8),
    st.integers(0, 2**32).map(random.Random),
)
def test_status_counts_the_tokens_that_were_told(
    rows: list[tuple[Plan, SamplingParams]], rng: random.Random
) -> None:
    replica = LocalReplica(
        UnrulyEngine([plan for plan, _ in rows], rng),  # type: ignore[arg-type]
        LetterTokenizer(),  # type: ignore[arg-type]
    )
    driver = Driver(replica)
    for index, (_, sampling) in enumerate(rows):
        driver.submit(Request(index, [index], sampling), stream=False)
    while replica.num_unfinished:
        driver.poll()
    generated = begun = 0
    for index, (plan, _) in enumerate(rows):
        end = driver.told[index].end
        if end is not REFUSED:
            count = len(plan.token_ids) if isinstance(end, RowError) else len(end[0])
            generated += count
            begun += count > 0
    assert (replica.status.generation_tokens, replica.status.prompt_tokens) == (generated, begun)


def unruly(number: int) -> tuple[LocalReplica, UnrulyEngine]:
    """A replica whose ``number`` requests are never answered."""
    engine = UnrulyEngine([Plan([0] * 1000)] * number, random.Random(7))
    return LocalReplica(engine, LetterTokenizer()), engine  # type: ignore[arg-type]


ENDLESS = SamplingParams(max_tokens=1000)


def give_up_by_cancelling(replica: LocalReplica) -> None:
    for index in range(9):
        replica.cancel(index)


@pytest.mark.parametrize("give_up", [LocalReplica.reset, give_up_by_cancelling])
def test_giving_up_everything_leaves_nothing(give_up: Callable[[LocalReplica], None]) -> None:
    replica, engine = unruly(9)
    for index in range(9):
        replica.submit(Request(index, [index], ENDLESS), stream=True)
    replica.poll()
    give_up(replica)
    check_nothing_is_left(replica)
    assert engine.num_unfinished == 0
    assert replica.poll() == []
    replica.submit(Request(3, [3], ENDLESS))  # an index is free again
    assert replica.num_unfinished == 1


def test_dropping_what_waits_leaves_what_has_begun() -> None:
    replica, _ = unruly(9)
    for index in range(9):
        replica.submit(Request(index, [index], ENDLESS), stream=True)
    replica.poll()
    waiting = replica.status.waiting
    assert waiting >= 6
    replica.drop_waiting()
    assert replica.num_unfinished == replica.status.running == 9 - waiting
    told = {event.index for _ in range(50) for event in replica.poll()}
    assert len(told) == replica.num_unfinished


def test_a_failure_to_come_can_be_cancelled() -> None:
    engine = UnrulyEngine([Plan([], refused=True)], random.Random(7))
    replica = LocalReplica(engine, LetterTokenizer())  # type: ignore[arg-type]
    for index in (0, 1):
        replica.submit(Request(index, [0], ENDLESS))
    replica.cancel(0)
    assert replica.num_unfinished == 1
    assert replica.poll() == [RowFailure(1, REFUSED)]
    check_nothing_is_left(replica)


POISON = 77


@st.composite
def real_rows(draw: st.DrawFn) -> list[Request]:
    """Requests for the fake model, some with a stop string that its answer holds."""
    rows = []
    for index in range(draw(st.integers(1, 8))):
        text = draw(st.lists(st.sampled_from([0, 1, 2, 3, POISON]), min_size=1, max_size=12))
        sampling = SamplingParams(
            max_tokens=draw(st.integers(1, 12)), ignore_eos=draw(st.booleans())
        )
        row = Request(index, text, sampling)
        if draw(st.booleans()):
            token_ids = reference(row, sampling.max_tokens)
            first = draw(st.integers(0, len(token_ids) - 1))
            stop = text_of(*token_ids[first : first + draw(st.integers(1, 6))])
            row = replace(row, sampling=replace(sampling, stop=("###", stop)))
        rows.append(row)
    return rows


def expected_end(row: Request) -> End | RowError:
    """``fold`` of the reference's tokens, where a step fails that reads the poison."""
    if POISON in row.token_ids:
        return BROKEN
    token_ids = reference(row, row.sampling.max_tokens)
    if POISON in token_ids:
        token_ids = token_ids[: token_ids.index(POISON) + 1]
    return fold(Plan(token_ids), row.sampling, fake_model.EOS)


@settings(max_examples=40, deadline=None)
@given(
    real_rows(),
    st.sets(st.integers(0, 7), max_size=3),
    st.integers(1, 30),
    st.integers(1, 6),
    st.integers(24, 60),
    st.booleans(),
    st.integers(0, 2**32).map(random.Random),
)
def test_the_engine_in_small_pools_with_failing_steps(
    rows: list[Request],
    cancelled: set[int],
    budget: int,
    seqs: int,
    pool: int,
    ahead: bool,
    rng: random.Random,
) -> None:
    """Preempted, bisected or ahead: an answer is the reference's up to its end."""
    engine = small_engine(
        FakeModel(fail_on=POISON),
        ahead=ahead,
        max_batched_tokens=budget,
        max_num_seqs=seqs,
        kv_cache_tokens=pool,
    )
    replica = LocalReplica(engine, LetterTokenizer())  # type: ignore[arg-type]
    driver = Driver(replica)
    to_submit = list(rows)
    to_cancel = {index for index in cancelled if index < len(rows)}
    while to_submit or replica.num_unfinished:
        if to_submit and (rng.random() < 0.3 or not replica.num_unfinished):
            driver.submit(to_submit.pop(), stream=rng.random() < 0.5)
        elif (now := to_cancel & driver.open) and rng.random() < 0.2:
            to_cancel.discard(min(now))
            driver.cancel(min(now))
        else:
            driver.poll()
            engine.scheduler.check_integrity()
    for row in rows:
        end = driver.told[row.index].end
        if end is None:
            assert row.index in cancelled
            continue
        expected = expected_end(row)
        if expected is BROKEN:
            assert isinstance(end, RowError) and "fails on this token" in end.message
        else:
            assert end == expected
    check_nothing_is_left(replica)
    assert engine.num_unfinished == 0
    assert engine.status.kv_used_tokens == 0
