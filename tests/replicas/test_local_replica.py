"""Every request submitted ends exactly once, with what a plain fold over its tokens says."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import fake_model
import pytest
from fake_engine import EOS, FakeEngine
from fake_model import FakeModel, reference, small_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from letter_tokenizer import LetterTokenizer

from vlmbatch.config import SamplingParams
from vlmbatch.engine.outputs import SequenceFailure, TokenOutput
from vlmbatch.engine.sequence import Sequence
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.replicas.local import LocalReplica
from vlmbatch.replicas.replica import Completion, Event, NewTokens, RowFailure
from vlmbatch.types import FinishReason, Request

BROKEN = RowError(ErrorCode.ENGINE_ERROR, "the engine fails on this row")
REFUSED = RowError(ErrorCode.PROMPT_TOO_LONG, "too long")


def text_of(*token_ids: int) -> str:
    return LetterTokenizer().decode(list(token_ids))


End = tuple[tuple[int, ...], FinishReason, int | None]  # tokens, reason, where the text is cut


@dataclass(frozen=True)
class Plan:
    """What the engine makes of a request: these tokens, then a failure if they do not end it."""

    token_ids: list[int]
    refused: bool = False


@dataclass
class Told:
    """All that a replica has told of one request."""

    tokens: list[int] = field(default_factory=list)
    end: End | RowError | None = None


def fold(plan: Plan, sampling: SamplingParams, eos: int = EOS) -> End | RowError:
    """How the request must end."""
    if plan.refused:
        return REFUSED
    text = ""
    for count, token_id in enumerate(plan.token_ids, start=1):
        answer = tuple(plan.token_ids[:count])
        text += text_of(token_id)
        if cuts := [text.index(stop) for stop in sampling.stop if stop in text]:
            return answer, "stop", min(cuts)
        if token_id == eos and not sampling.ignore_eos:
            return answer, "stop", None
        if count == sampling.max_tokens:
            return answer, "length", None
    return BROKEN


class UnrulyEngine(FakeEngine):
    """Computes sequences in any order: some stall, some get tokens of several steps at once, some
    are preempted. The only token of a prompt is the number of its plan.
    """

    def __init__(self, plans: list[Plan], rng: random.Random) -> None:
        super().__init__(lambda indexes: None, max_num_seqs=3)
        self._plans = plans
        self._rng = rng

    def add(self, request: Request) -> Sequence:
        if self._plans[request.token_ids[0]].refused:
            raise REFUSED
        return super().add(request)

    def step(self) -> list[TokenOutput | SequenceFailure]:
        while self._waiting and len(self._running) < self._max_num_seqs:
            sequence = self._waiting.popleft()
            self._running[sequence] = self._plans[sequence.request.token_ids[0]].token_ids
        outputs: list[TokenOutput | SequenceFailure] = []
        members = list(self._running)
        self._rng.shuffle(members)
        for sequence in members:
            if self._rng.random() < 0.1:
                sequence.num_computed_tokens = 0
                del self._running[sequence]
                self._waiting.appendleft(sequence)
                continue
            for _ in range(self._rng.choice([0, 1, 1, 1, 2, 3])):
                if not self._compute(sequence, outputs):
                    del self._running[sequence]
                    break
        return outputs

    def _compute(self, sequence: Sequence, outputs: list[TokenOutput | SequenceFailure]) -> bool:
        """One more token, or the failure behind the last; False if it is the end."""
        token_ids, done = self._running[sequence], len(sequence.output_token_ids)
        if done == len(token_ids):
            outputs.append(SequenceFailure(sequence, BROKEN))
            return False
        sequence.advance(sequence.num_uncomputed_tokens)
        ended = sequence.resolve(token_ids[done])
        outputs.append(TokenOutput(sequence, token_ids[done], sequence.finish_reason))
        return not ended


class Driver:
    """Submits to and polls a replica, and checks what it tells on the way."""

    def __init__(self, replica: LocalReplica) -> None:
        self.replica = replica
        self.told: dict[int, Told] = {}  # also of what was given up
        self.streams: set[int] = set()
        self.open: set[int] = set()

    def submit(self, request: Request, stream: bool) -> None:
        self.told[request.index] = Told()
        self.streams.discard(request.index)
        if stream:
            self.streams.add(request.index)
        self.open.add(request.index)
        self.replica.submit(request, stream=stream)

    def cancel(self, index: int) -> None:
        self.open.discard(index)
        self.replica.cancel(index)

    def poll(self) -> None:
        for event in self.replica.poll():
            self._take(event)
        assert self.replica.num_unfinished == len(self.open)

    def _take(self, event: Event) -> None:
        assert event.index in self.open, "it has ended"
        told = self.told[event.index]
        if isinstance(event, NewTokens):
            assert event.index in self.streams and event.token_ids
            told.tokens += event.token_ids
            return
        self.open.remove(event.index)
        if isinstance(event, Completion):
            count = len(told.tokens)
            assert list(event.token_ids[:count]) == told.tokens
            if event.index in self.streams:
                assert count == len(event.token_ids) - 1, "all but the last have come before"
            assert event.first_token_at > 0
            told.end = event.token_ids, event.finish_reason, event.text_end
        else:
            assert isinstance(event, RowFailure)
            told.end = event.error


def check_nothing_is_left(replica: LocalReplica) -> None:
    assert replica.num_unfinished == 0
    assert not replica._under_way and not replica._sequences and not replica._refused


samplings = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 8),
    ignore_eos=st.booleans(),
    stop=st.lists(
        st.lists(st.integers(0, 3), min_size=1, max_size=6).map(lambda ids: text_of(*ids)),
        max_size=2,
    ).map(tuple),
)
plans = st.builds(
    Plan,
    st.lists(st.sampled_from([0, 1, EOS, 3]), max_size=8),
    st.sampled_from([False, False, False, True]),
)


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=100, deadline=None)
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


@settings(max_examples=150, deadline=None)
@given(
    real_rows(),
    st.sets(st.integers(0, 7), max_size=3),
    st.integers(1, 30),
    st.integers(1, 6),
    st.integers(24, 60),
    st.booleans(),
    st.none() | st.lists(st.booleans(), min_size=1, max_size=8),
    st.integers(0, 2**32).map(random.Random),
)
def test_the_engine_in_small_pools_with_failing_steps(
    rows: list[Request],
    cancelled: set[int],
    budget: int,
    seqs: int,
    pool: int,
    ahead: bool,
    overlaps: list[bool] | None,
    rng: random.Random,
) -> None:
    """Preempted, bisected, ahead or in lanes: an answer is the reference's up to its end."""
    engine = small_engine(
        FakeModel(fail_on=POISON),
        ahead=ahead,
        overlaps=overlaps,
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
