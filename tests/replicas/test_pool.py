"""Requests to several engines end once each, whichever engines end; and where they go."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from fake_links import FakeEngines, FakeLink
from hypothesis import given, settings
from hypothesis import strategies as st
from unruly import Driver, Plan, UnrulyEngine, fold, plans, samplings

from vlmbatch.config import SamplingParams
from vlmbatch.errors import (
    ConfigError,
    EnginesLostError,
    ErrorCode,
    OutputError,
    RowError,
    VlmbatchError,
)
from vlmbatch.replicas import pool as pool_module
from vlmbatch.replicas.messages import Failed, Submit, TakeBack
from vlmbatch.replicas.pool import MAX_RESTARTS
from vlmbatch.replicas.replica import Completion, Event, NewTokens, RowFailure
from vlmbatch.replicas.router import MAX_SUSPECTS
from vlmbatch.replicas.sharing import image_of
from vlmbatch.types import ImageGrid, PixelImage, Request

ENDLESS = SamplingParams(max_tokens=150, ignore_eos=True)
SHORT = SamplingParams(max_tokens=3, ignore_eos=True)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pool_module, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(pool_module, "_BRIEF_SECONDS", 0.0)
    yield


class PoolDriver(Driver):
    def __init__(self, engines: FakeEngines) -> None:
        super().__init__(engines.pool)

    def poll(self) -> None:
        for event in self.replica.poll():
            self._take(event)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(plans, samplings, st.booleans()), min_size=1, max_size=12),
    st.integers(0, 6),
    st.booleans(),
    st.integers(0, 2**32).map(random.Random),
)
def test_every_request_ends_once_whichever_engines_end(
    rows: list[tuple[Plan, SamplingParams, bool]],
    num_deaths: int,
    no_more: bool,
    rng: random.Random,
) -> None:
    all_plans = [plan for plan, _, _ in rows]
    engines = FakeEngines(lambda: UnrulyEngine(all_plans, rng))
    driver = PoolDriver(engines)
    given_up: set[int] = set()
    to_submit = list(range(len(rows)))
    deaths = 0
    while to_submit or driver.open:
        action = rng.random()
        if not engines.alive:  # they are started again when their ends are known
            driver.poll()
        link = rng.choice(engines.alive)
        if to_submit and action < 0.2:
            index = to_submit.pop()
            _, sampling, stream = rows[index]
            driver.submit(Request(index, [index], sampling), stream)
            if not to_submit and no_more:
                engines.pool.expect_no_more()
        elif action < 0.25 and driver.open:
            index = rng.choice(sorted(driver.open))
            driver.cancel(index)
            given_up.add(index)
        elif action < 0.3 and deaths < num_deaths:
            deaths += 1
            link.die()
        elif action < 0.4 and not link.started:
            link.ready()
        elif action < 0.6 and link.started:
            link.receive()
        elif action < 0.8 and link.started:
            link.work()
        else:
            driver.poll()
    for index, (plan, sampling, _) in enumerate(rows):
        end = driver.told[index].end
        if index in given_up:
            assert end is None
        elif end != fold(plan, sampling):
            assert isinstance(end, RowError) and end.code is ErrorCode.ENGINE_ERROR
            assert deaths >= (1 if driver.told[index].tokens else 2)
    assert engines.pool.num_unfinished == 0
    assert not engines.pool._held and not engines.pool._by_index
    for link in engines.alive:  # all that was given up has gone
        link.ready()
        link.receive()
        link.work()
    driver.poll()
    assert all(link.side.is_idle for link in engines.alive)
    engines.memory.close()


def request(index: int, *images: PixelImage, sampling: SamplingParams = SHORT) -> Request:
    return Request(index, [0], sampling, images)


def picture(fill: int) -> PixelImage:
    return PixelImage(np.full((2, 2, 3), fill, np.uint8), bytes([fill]), ImageGrid(1, 1, 1, 12))


def steady(num_seqs: int = 2) -> FakeEngine:
    return UnrulyEngine([Plan([0] * 1000)], random.Random(7), max_num_seqs=num_seqs)


@pytest.fixture
def engines() -> Iterator[FakeEngines]:
    made = FakeEngines(steady)
    made.start_all()
    made.pool.wait_ready()
    yield made
    made.pool.close()


def where(engines: FakeEngines) -> dict[int, str]:
    """The name of the engine that each request was last sent to, by the order of submission."""
    return {
        message.request.index: link.name
        for link in engines.links
        for message in link.sent
        if isinstance(message, Submit)
    }


def finish(engines: FakeEngines) -> list[Event]:
    events: list[Event] = []
    for _ in range(1000):
        if not engines.pool.num_unfinished:
            return events
        engines.start_all()
        engines.work_all()
        events += engines.pool.poll()
    raise AssertionError("it does not end")


def test_rows_of_an_image_go_to_one_engine_and_others_where_least_is_left(engines):
    for index in range(12):
        engines.pool.submit(request(index, picture(index % 3)))
    at = where(engines)
    assert [len({at[i] for i in range(12) if i % 3 == image}) for image in range(3)] == [1, 1, 1]
    assert len({at[0], at[1], at[2]}) == 3
    engines.pool.submit(request(12, sampling=ENDLESS))
    engines.pool.submit(request(13))
    engines.pool.submit(request(14))
    at = where(engines)
    assert len({at[12], at[13], at[14]}) == 3


def test_a_full_engine_does_not_hold_up_an_image(engines):
    index = 0
    while engines.pool.wants_requests:
        engines.pool.submit(request(index, picture(1)))
        index += 1
    assert index == 12  # each takes four that wait
    assert len(set(where(engines).values())) == 3


def test_pixels_reach_engines_through_shared_memory(engines):
    engines.pool.submit(request(0, picture(7), picture(9)))
    (link,) = [link for link in engines.links if link.sent]
    (message,) = link.sent
    assert message.request.images == ()
    images: list[Any] = [image_of(shared, link.side._memory) for shared in message.images]
    assert [image.content_hash for image in images] == [bytes([7]), bytes([9])]
    assert [int(image.pixels.max()) for image in images] == [7, 9]


def test_memory_of_images_is_free_when_their_requests_have_ended(engines):
    for index in range(200):
        pixels = np.zeros((1000, 1000, 3), np.uint8)
        image = PixelImage(pixels, b"%d" % index, ImageGrid(1, 1, 1, pixels.nbytes))
        engines.pool.submit(request(index, image))
        if index % 2:
            engines.pool.cancel(index)
        if index % 10 == 9:
            finish(engines)
    assert engines.memory.num_bytes <= 2 * 64 * 2**20


def test_images_of_what_was_given_up_stay_until_the_engine_knows(engines):
    engines.pool.submit(request(0, picture(7)))
    engines.pool.cancel(0)
    (link,) = [link for link in engines.links if link.sent]
    for fill in range(50):  # would take its place
        engines.memory.copy(np.full(12, fill, np.uint8))
    image: Any = image_of(link.sent[0].images[0], link.side._memory)
    assert int(image.pixels.max()) == 7


def test_the_end_is_balanced(engines):
    """Three engines of two rows each; all but one row are answered at once by two of them."""
    for index in range(30):
        engines.pool.submit(request(index, picture(1), sampling=ENDLESS))
        engines.pool.cancel(index)
    loaded = engines.links[0]
    for index in range(30, 42):
        engines.pool._members[0].submit(held(engines, index))
    engines.pool.expect_no_more()
    events = finish(engines)
    assert sorted(event.index for event in events) == list(range(30, 42))
    assert any(isinstance(message, TakeBack) for message in loaded.sent)
    answered = [status.answered for _, status in engines.pool.status.parts]
    assert sum(answered) == 12 and min(answered) >= 3


def held(engines: FakeEngines, index: int) -> Any:
    """A request of the pool's that it has given to nobody yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines.pool._router, "_route", lambda held: None)
        engines.pool.submit(request(index))
    return engines.pool._by_index[index]


def test_nothing_is_moved_before_the_last_row_is_here(engines):
    for index in range(8):
        engines.pool._members[0].submit(held(engines, index))
    finish(engines)
    assert not any(isinstance(each, TakeBack) for link in engines.links for each in link.sent)


def begin(engines: FakeEngines, count: int) -> None:
    for index in range(count):
        engines.pool.submit(request(index, sampling=ENDLESS))
    engines.work_all()
    engines.pool.poll()


def test_what_an_engine_was_computing_is_computed_by_others(engines):
    begin(engines, 6)
    engines.links[0].die()
    assert len(finish(engines)) == 6
    assert engines.pool.status.answered == 6


def test_a_row_under_way_in_two_deaths_is_an_error_and_those_that_waited_are_not():
    engines = FakeEngines(steady, names=("a",))
    engines.start_all()
    engines.pool.wait_ready()
    begin(engines, 2)
    engines.links[-1].die()
    for _ in range(2):
        engines.pool.poll()
        engines.start_all()
    engines.work_all()
    for index in (2, 3):  # two are computed at a time
        engines.pool.submit(request(index, sampling=ENDLESS))
    engines.links[-1].receive()
    engines.links[-1].die()
    events: dict[int, Any] = {event.index: event for event in finish(engines)}
    failed = {index for index, event in events.items() if isinstance(event, RowFailure)}
    assert failed == {0, 1}
    assert "2 engines ended while they computed this row" in events[0].error.message
    assert all(len(events[index].token_ids) == 150 for index in (2, 3))


def test_a_culprit_takes_few_others_with_it():
    """A row that ends every engine that computes it, among many."""
    engines = FakeEngines(lambda: steady(64), names=("a", "b"))
    engines.start_all()
    for index in range(60):
        engines.pool.submit(request(index, sampling=replace(SHORT, max_tokens=9)))
    culprit = engines.pool._by_index[17].serial
    events = []
    while engines.pool.num_unfinished:
        for link in engines.alive:
            if not link.started:
                link.ready()
            link.receive()
            link.work()
            under_way = {sequence.request.index for sequence in running(link)}
            if culprit in under_way:
                link.die()
        events += engines.pool.poll()
    failed = [event.index for event in events if isinstance(event, RowFailure)]
    assert 17 in failed and len(failed) <= MAX_SUSPECTS
    assert len(events) == 60


def running(link: FakeLink) -> Any:
    return link.side._replica._engine._running  # type: ignore[attr-defined]


def test_a_stream_that_has_begun_is_not_told_twice(engines):
    for index in range(3):
        engines.pool.submit(request(index, sampling=ENDLESS), stream=True)
    told: dict[int, list[int]] = {0: [], 1: [], 2: []}
    ends = {}
    for count in range(400):
        engines.work_all()
        for event in engines.pool.poll():
            if isinstance(event, NewTokens):
                told[event.index] += event.token_ids
            else:
                ends[event.index] = event
        if count == 20:
            assert all(told.values())
            engines.links[1].die()
    assert isinstance(ends[1], RowFailure)
    assert f"after {len(told[1])} tokens of the answer were sent" in ends[1].error.message
    assert all(isinstance(ends[index], Completion) for index in (0, 2))


def test_an_engine_is_started_again_so_often_and_the_last_one_ends_it():
    engines = FakeEngines(steady, names=("a",))
    engines.start_all()
    for _ in range(MAX_RESTARTS):
        engines.links[-1].die()
        engines.pool.poll()
        assert engines.alive
    engines.pool.submit(request(0))
    engines.links[-1].die()
    with pytest.raises(EnginesLostError, match="signal 9") as caught:
        engines.pool.poll()
        engines.pool.poll()
    assert caught.value.exit_status == 74
    assert len(engines.links) == 1 + MAX_RESTARTS
    assert engines.pool.wants_requests, "else nobody would poll"


def test_requests_that_come_while_no_engine_is_ready_are_answered():
    engines = FakeEngines(steady)
    assert engines.pool.wants_requests
    index = 0
    while engines.pool.wants_requests:
        engines.pool.submit(request(index))
        index += 1
    assert index < 100
    assert len(finish(engines)) == index


@pytest.mark.parametrize("error", [ConfigError("too little memory"), KeyError("bug")])
def test_what_the_first_start_raises_is_raised(error: BaseException):
    engines = FakeEngines(steady)
    engines.links[1].tell(Failed(error, "traceback"))
    with pytest.raises(type(error)):
        engines.pool.wait_ready()


def test_a_later_start_that_fails_is_tried_again(engines):
    begin(engines, 6)
    engines.links[0].die()
    engines.pool.poll()
    engines.links[-1].tell(Failed(ConfigError("the memory is not free yet"), "traceback"))
    assert len(finish(engines)) == 6
    assert len(engines.links) == 5


def test_what_an_engine_raises_of_all_answers_is_raised(engines):
    engines.pool.submit(request(0))
    engines.links[0].tell(Failed(VlmbatchError("the model failed on 64 rows"), ""))
    with pytest.raises(VlmbatchError, match="64 rows"):
        engines.pool.poll()


def give_up_by_cancelling(engines: FakeEngines) -> None:
    for index in range(30):
        engines.pool.cancel(index)


@pytest.mark.parametrize("give_up", [lambda engines: engines.pool.reset(), give_up_by_cancelling])
def test_giving_up_everything_leaves_nothing(
    engines: FakeEngines, give_up: Callable[[FakeEngines], None]
) -> None:
    begin(engines, 30)
    give_up(engines)
    assert engines.pool.num_unfinished == 0
    engines.pool.submit(request(3))  # an index is free again
    assert [event.index for event in finish(engines)] == [3]
    engines.work_all()
    assert all(link.side.is_idle for link in engines.links)


def test_dropping_what_waits_leaves_what_has_begun(engines):
    begin(engines, 12)  # of which two run in each engine
    engines.pool.drop_waiting()
    events = finish(engines)
    assert len(events) == 6
    assert engines.pool.status.running == engines.pool.status.waiting == 0


def test_status_counts_what_ended_engines_have_done():
    engines = FakeEngines(steady, names=("a", "b"))
    engines.start_all()
    for index in range(8):
        engines.pool.submit(request(index))
    finish(engines)
    before = engines.pool.status
    engines.links[0].die()
    engines.pool.submit(request(8))
    finish(engines)
    after = engines.pool.status
    assert (before.answered, after.answered) == (8, 9)
    assert after.generation_tokens == before.generation_tokens + 3
    assert [name for name, _ in after.parts] == ["a", "b"]
    assert sum(status.answered for _, status in after.parts) == 9


def test_an_engine_that_cannot_be_started_again_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines = FakeEngines(steady, names=("a", "b"))
    engines.start_all()
    engines.pool.wait_ready()
    begin(engines, 4)

    def no_process(news: Any) -> Any:
        raise OutputError("an engine process cannot be started: Cannot allocate memory")

    monkeypatch.setattr(engines.pool._members[0], "_start", no_process)
    engines.links[0].die()
    assert len(finish(engines)) == 4
    assert [member.gone for member in engines.pool._members] == [True, False]
