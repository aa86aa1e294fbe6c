"""Batches of a scripted generator: each request ends once, with what its own tokens say."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from letter_tokenizer import LetterTokenizer

from vlmbatch.config import SamplingParams
from vlmbatch.errors import ErrorCode, VlmbatchError
from vlmbatch.hf.failures import BatchFailedError
from vlmbatch.hf.replica import HfReplica
from vlmbatch.hf.row import RowUnderWay
from vlmbatch.replicas.replica import Completion, Event, NewTokens, RowFailure
from vlmbatch.types import Request, TokenLogprob

EOS = 5
OnToken = Callable[[RowUnderWay, int, TokenLogprob | None], None]


def letters(*token_ids: int) -> str:
    return LetterTokenizer().decode(token_ids)


def request(index: int, length: int = 3, kind: int = 0, **sampling: object) -> Request:
    """``kind``: its first token, by which the tests keep batches apart."""
    tokens = [kind] + [7] * (length - 1)
    return Request(index, tokens, SamplingParams(**{"max_tokens": 4, **sampling}))  # type: ignore[arg-type]


class Script:
    """Gives row i the tokens 10 + i, 11 + i and so on, then EOS.

    It fails on batches of more than ``room`` rows after ``steps`` steps, on rows in ``broken``, and
    for lack of memory on those in ``huge``.
    With ``hold`` it stops before its second step until told to go on.
    """

    def __init__(
        self,
        room: int = 99,
        steps: int = 0,
        broken: Sequence[int] = (),
        huge: Sequence[int] = (),
        length: int = 8,
        hold: bool = False,
    ) -> None:
        self.batches: list[list[int]] = []
        self.lengths: list[list[int]] = []
        self.go_on = threading.Event()
        self.holding = threading.Event()
        self._room, self._steps, self._broken, self._huge = room, steps, broken, huge
        self._length, self._hold = length, hold

    def answer(
        self, rows: Sequence[RowUnderWay], on_token: OnToken, given_up: Callable[[], bool]
    ) -> None:
        self.batches.append([row.request.index for row in rows])
        self.lengths.append([row.num_prompt_tokens for row in rows])
        if any(row.request.index in self._broken for row in rows):
            raise BatchFailedError("a broken row", out_of_memory=False)
        if any(row.request.index in self._huge for row in rows):
            raise BatchFailedError("no memory for a row", out_of_memory=True)
        for step in range(self._length + 1):
            if len(rows) > self._room and step == self._steps:
                raise BatchFailedError("no memory", out_of_memory=True)
            if step == 1 and self._hold:
                self.holding.set()
                while not (self.go_on.wait(0.01) or given_up()):
                    pass
            if given_up() or all(row.ended for row in rows):
                return
            for row in rows:
                if not row.ended:
                    token_id = 10 + row.request.index + step if step < self._length else EOS
                    on_token(row, token_id, None)


@pytest.fixture
def replicas() -> Iterator[Callable[..., HfReplica]]:
    made: list[HfReplica] = []

    def make(script: object, max_num_seqs: int = 4, gather_seconds: float = 0.0) -> HfReplica:
        replica = HfReplica(
            script,  # type: ignore[arg-type]
            LetterTokenizer(),  # type: ignore[arg-type]
            lambda each: each.token_ids[0],
            eos_token_ids=[EOS],
            max_model_len=20,
            max_num_seqs=max_num_seqs,
            gather_seconds=gather_seconds,
        )
        made.append(replica)
        return replica

    yield make
    for replica in made:
        replica.close()


def drain(replica: HfReplica) -> list[Event]:
    events: list[Event] = []
    while replica.num_unfinished:
        events += replica.poll()
    return events


def ends(events: list[Event]) -> dict[int, Completion | RowFailure]:
    found = [event for event in events if not isinstance(event, NewTokens)]
    assert len({event.index for event in found}) == len(found)
    return {event.index: event for event in found}


def test_each_row_ends_by_its_own_settings(replicas: Callable[..., HfReplica]) -> None:
    replica = replicas(Script())
    replica.submit(request(0, max_tokens=2))
    replica.submit(request(1, max_tokens=99))
    replica.submit(request(2, max_tokens=99, ignore_eos=True, stop_token_ids=[14]))
    replica.submit(request(3, max_tokens=99, stop=[letters(14, 15)]))
    found = ends(drain(replica))
    told = {
        index: (end.token_ids, end.finish_reason, end.text_end)
        for index, end in found.items()
        if isinstance(end, Completion)
    }
    assert told == {
        0: ((10, 11), "length", None),
        1: ((11, 12, 13, 14, 15, 16, 17, 18, EOS), "stop", None),
        2: ((12, 13, 14), "stop", None),
        3: ((13, 14, 15), "stop", 1),
    }
    assert (replica.status.prompt_tokens, replica.status.generation_tokens) == (12, 17)


def test_no_answer_goes_beyond_the_context(replicas: Callable[..., HfReplica]) -> None:
    replica = replicas(Script())
    replica.submit(request(0, length=18, max_tokens=99))
    end = ends(drain(replica))[0]
    assert isinstance(end, Completion)
    assert (end.token_ids, end.finish_reason) == ((10, 11), "length")


def test_rows_of_one_kind_and_about_one_length_go_together(
    replicas: Callable[..., HfReplica],
) -> None:
    script = Script()
    replica = replicas(script, max_num_seqs=2)
    for index, (length, kind) in enumerate([(9, 0), (3, 0), (5, 1), (8, 0), (2, 0)]):
        replica.submit(request(index, length=length, kind=kind))
    assert len(ends(drain(replica))) == 5
    assert script.batches == [[3, 0], [4, 1], [2]]
    assert script.lengths == [[8, 9], [2, 3], [5]]


@pytest.mark.parametrize("steps", [0, 2])
def test_a_batch_without_room_is_divided(replicas: Callable[..., HfReplica], steps: int) -> None:
    script = Script(room=2, steps=steps)
    replica = replicas(script, max_num_seqs=8)
    for index in range(12):
        replica.submit(request(index, max_tokens=1 if index == 0 else 4), stream=index == 1)
    events = drain(replica)
    found = ends(events)
    for index in range(1, 12):
        end = found[index]
        assert isinstance(end, Completion)
        assert end.token_ids == tuple(range(10 + index, 14 + index))
    # Later batches are no larger than what was answered of the one that failed.
    assert [len(batch) for batch in script.batches[-2:]] == [2, 2]
    # A token that was told already is not told again.
    told = [event.token_ids for event in events if isinstance(event, NewTokens)]
    assert told == [(11,), (12,), (13,)]
    # What had ended before the batch failed is not computed anew.
    assert sum(0 in batch for batch in script.batches) == (1 if steps else 3)


def test_a_row_that_fails_alone_is_an_error(replicas: Callable[..., HfReplica]) -> None:
    replica = replicas(Script(broken=[2]))
    for index in range(6):
        replica.submit(request(index))
    found = ends(drain(replica))
    failed = found.pop(2)
    assert isinstance(failed, RowFailure)
    assert failed.error.code == ErrorCode.ENGINE_ERROR
    assert "a broken row" in failed.error.message
    assert all(isinstance(end, Completion) for end in found.values())


def test_a_row_that_no_memory_holds_makes_no_later_batch_smaller(
    replicas: Callable[..., HfReplica],
) -> None:
    script = Script(huge=[2])
    replica = replicas(script, max_num_seqs=4)
    for index in range(8):
        replica.submit(request(index))
    found = ends(drain(replica))
    assert isinstance(found.pop(2), RowFailure)
    assert all(isinstance(end, Completion) for end in found.values())
    assert script.batches[-1] == [4, 5, 6, 7]


def test_when_every_row_fails_it_is_not_the_rows(replicas: Callable[..., HfReplica]) -> None:
    replica = replicas(Script(broken=range(999)))
    for index in range(16):
        replica.submit(request(index))
    with pytest.raises(VlmbatchError, match="64 rows one after another, the last with: a broken"):
        for index in range(16, 999):
            replica.submit(request(index))
            replica.poll()


def test_what_the_model_should_not_raise_ends_the_run(
    replicas: Callable[..., HfReplica],
) -> None:
    class Broken:
        def answer(self, *_: object) -> None:
            raise KeyError("a bug")

    replica = replicas(Broken())
    replica.submit(request(0))
    with pytest.raises(VlmbatchError, match="KeyError: 'a bug'"):
        drain(replica)


def test_a_row_given_up_in_a_batch_ends_it_for_no_other(
    replicas: Callable[..., HfReplica],
) -> None:
    script = Script(hold=True)
    replica = replicas(script)
    for index in range(3):
        replica.submit(request(index))
    replica.poll()
    assert script.holding.wait(5)
    replica.cancel(1)
    replica.cancel(1)
    replica.submit(request(1, max_tokens=2))  # its index may be used again
    script.go_on.set()
    found = ends(drain(replica))
    assert sorted(found) == [0, 1, 2]
    again = found[1]
    assert isinstance(again, Completion)
    assert again.token_ids == (11, 12)
    assert script.batches == [[0, 1, 2], [1]]


def test_what_waits_can_be_dropped(replicas: Callable[..., HfReplica]) -> None:
    script = Script(hold=True)
    replica = replicas(script, max_num_seqs=2)
    for index in range(5):
        replica.submit(request(index))
    assert replica.fills_step and replica.wants_requests
    replica.poll()
    assert (replica.status.running, replica.status.waiting) == (2, 3)
    replica.drop_waiting()
    script.go_on.set()
    assert sorted(ends(drain(replica))) == [0, 1]
    assert script.batches == [[0, 1]]


def test_a_batch_is_given_up_at_its_next_token(replicas: Callable[..., HfReplica]) -> None:
    script = Script(hold=True)
    replica = replicas(script)
    replica.submit(request(0), stream=True)
    while not replica.poll():
        pass
    assert script.holding.wait(5)
    replica.reset()
    assert (replica.num_unfinished, replica.poll()) == (0, [])
    script.go_on.set()
    replica.submit(request(0))
    assert list(ends(drain(replica))) == [0]


def test_requests_are_wanted_until_several_batches_wait(
    replicas: Callable[..., HfReplica],
) -> None:
    replica = replicas(Script(), max_num_seqs=2)
    submitted = 0
    while replica.wants_requests:
        replica.submit(request(submitted))
        submitted += 1
    assert submitted == 8
    assert len(ends(drain(replica))) == 8
    assert replica.wants_requests


def test_an_idle_replica_waits_for_a_full_batch(replicas: Callable[..., HfReplica]) -> None:
    script = Script()
    replica = replicas(script, max_num_seqs=3, gather_seconds=60.0)
    replica.submit(request(0))
    assert replica.poll() == []
    replica.submit(request(1))
    assert (replica.poll(), script.batches) == ([], [])
    replica.submit(request(2))
    assert len(ends(drain(replica))) == 3
    replica.submit(request(3))
    replica.expect_no_more()
    assert len(ends(drain(replica))) == 1
    assert script.batches == [[0, 1, 2], [3]]
    replica.submit(request(4))  # as in the next call of a program
    assert replica.poll() == []


@given(
    limits=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    room=st.integers(1, 5),
    steps=st.integers(0, 4),
)
def test_batches_that_fail_anywhere_change_no_answer(
    limits: list[int], room: int, steps: int
) -> None:
    replica = HfReplica(
        Script(room=room, steps=steps),
        LetterTokenizer(),  # type: ignore[arg-type]
        lambda each: 0,
        eos_token_ids=[EOS],
        max_model_len=20,
        max_num_seqs=5,
        gather_seconds=0.0,
    )
    for index, limit in enumerate(limits):
        replica.submit(request(index, max_tokens=limit))
    found = ends(drain(replica))
    replica.close()
    for index, limit in enumerate(limits):
        end = found[index]
        assert isinstance(end, Completion)
        expected = [*range(10 + index, 18 + index), EOS][:limit]
        assert list(end.token_ids) == expected
