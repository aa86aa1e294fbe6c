"""Rows with choices on a replica that is played: what is asked of it, and how rows end."""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import SPECIAL, byte_level, sentencepiece

from vlmbatch.config import SamplingParams
from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.replicas.choices import ChoiceScorer, ChoiceTree
from vlmbatch.replicas.composed import ComposedReplica
from vlmbatch.replicas.replica import Completion, Event, RowFailure
from vlmbatch.types import ProcessedInputs, Request, TokenLogprob

EOS = (1, 2)


class Letters:
    """Plays a tokenizer: a token a letter."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text if letter != "-"]

    def piece(self, token_id: int) -> str:
        return ""

    def has_text(self, token_id: int) -> bool:
        return False


def probability(path: list[int], token_id: int) -> float:
    """Of a token behind a beginning; those of all tokens need not add up to 1 here."""
    return (1 + (7 * token_id + 3 * sum(path)) % 11) / 50


class Played:
    """Plays a replica that answers one request a poll; of row ``fails`` the requests fail."""

    def __init__(self, fails: int | None = None) -> None:
        self.requests: deque[Request] = deque()
        self.cancelled: list[int] = []
        self._fails = fails

    @property
    def num_unfinished(self) -> int:
        return len(self.requests)

    def submit(self, request: Request, *, stream: bool = False) -> None:
        self.requests.append(request)

    def cancel(self, index: int) -> None:
        self.cancelled.append(index)
        self.requests = deque(each for each in self.requests if each.index != index)

    def reset(self) -> None:
        self.requests.clear()

    def poll(self) -> list[Event]:
        if not self.requests:
            return []
        request = self.requests.popleft()
        row, *path = request.token_ids
        if row == self._fails and path:
            return [RowFailure(request.index, RowError(ErrorCode.ENGINE_ERROR, "no"))]
        top = tuple((each, math.log(probability(path, each))) for each in request.scored)
        logprobs = (TokenLogprob(0, 0.0, top),) if top else ()
        return [Completion(request.index, (0,), "length", 3, 1.5, None, logprobs)]


def replica_on(played: Any) -> ComposedReplica:
    letters: Any = Letters()
    return ComposedReplica(played, [ChoiceScorer(letters, EOS).compose])


def request(index: int, *choices: str, **more: Any) -> Request:
    return Request(index, [1000 + index], SamplingParams(choices=choices), **more)


def drain(replica: ComposedReplica) -> dict[int, Event]:
    found: dict[int, Event] = {}
    for _ in range(1000):
        if not replica.num_unfinished:
            return found
        for event in replica.poll():
            assert event.index not in found
            found[event.index] = event
    raise AssertionError("it does not end")


@given(st.lists(st.text("abc", min_size=1, max_size=4), min_size=2, max_size=8, unique=True))
def test_classes_are_scored_as_whole_texts(choices: list[str]) -> None:
    replica = replica_on(played := Played())
    replica.submit(request(4, *choices))
    replica.submit(Request(5, [1], SamplingParams()))
    found = drain(replica)
    assert isinstance(plain := found[5], Completion) and plain.choices == ()
    done = found[4]
    assert isinstance(done, Completion)
    begins = any(a != b and b.startswith(a) for a in choices for b in choices)
    expected = []
    for choice in choices:
        path = [ord(letter) for letter in choice]
        whole = math.prod(probability(path[:end], token) for end, token in enumerate(path))
        expected.append(whole * (sum(probability(path, end) for end in EOS) if begins else 1))
    assert [choice for choice, _ in done.choices] == choices
    assert [math.exp(value) for _, value in done.choices] == pytest.approx(expected)
    best = choices[expected.index(max(expected))]
    if sorted(expected)[-1] > 1.001 * sorted(expected)[-2]:
        assert done.token_ids == tuple(map(ord, best))
    assert (done.finish_reason, done.cached_tokens, done.first_token_at) == ("stop", 3, 1.5)
    assert not played.requests


def test_an_end_that_is_all_but_impossible() -> None:
    """Whose probability is 0 in 64 bits, though its logarithm is not."""
    tree = ChoiceTree(((1,), (1, 2)), (8, 9))
    scores = {(): {1: -1.0}, (1,): {2: -2.0, 8: -900.0, 9: -900.0}, (1, 2): {8: -0.5, 9: -900.0}}
    assert tree.logprobs(scores) == pytest.approx([-901 + math.log(2), -3.5])


def test_classes_of_one_token_take_one_request() -> None:
    replica = replica_on(played := Played())
    replica.submit(request(0, "a", "b", "c"))
    assert len(played.requests) == 1
    drain(replica)
    replica.submit(request(0, "ab", "ac", "b"))
    (events,) = [replica.poll()]
    assert events == [] and [each.token_ids[1:] for each in played.requests] == [[ord("a")]]


def test_a_failure_ends_the_row_alone() -> None:
    replica = replica_on(played := Played(fails=1001))
    for index in range(3):
        replica.submit(request(index, "ab", "cd", "ef"))
    found = drain(replica)
    assert [type(found[index]) for index in range(3)] == [Completion, RowFailure, Completion]
    assert len(played.cancelled) == 2
    assert "the first 1 tokens of a class behind the prompt: no" in str(found[1])


def test_requests_of_a_row_that_fail_together_are_one_failure() -> None:
    replica = replica_on(played := Played())
    replica.submit(request(0, "ab", "cd", "ef"))
    assert replica.poll() == []
    failures: list[Event] = [
        RowFailure(each.index, RowError(ErrorCode.PROMPT_TOO_LONG, "")) for each in played.requests
    ]
    assert len(failures) == 3
    played.poll = lambda: failures  # type: ignore[method-assign]
    assert [event.index for event in replica.poll()] == [0]


def test_a_row_is_given_up_with_all_that_was_asked_for_it() -> None:
    replica = replica_on(played := Played())
    replica.submit(request(0, "ab", "cd"))
    replica.submit(request(1, "ab", "cd"))
    replica.poll()
    replica.cancel(0)
    replica.cancel(7)
    assert list(drain(replica)) == [1] and 7 in played.cancelled
    replica.submit(request(0, "ab", "cd"))
    replica.reset()
    assert replica.num_unfinished == 0
    replica.submit(request(0, "ab", "cd"))
    assert list(drain(replica)) == [0]


def test_rows_that_cannot_be_scored_are_errors() -> None:
    replica = replica_on(Played())
    replica.submit(request(0, "a", "-"))
    replica.submit(request(1, "a-b", "ab"))
    replica.submit(request(2, "a", "b", inputs=ProcessedInputs({}, 0, 0)))
    replica.submit(request(3, "a", "-"))
    replica.cancel(3)
    found = drain(replica)
    messages = [each.error.message for each in found.values() if isinstance(each, RowFailure)]
    assert messages == [
        "choice '-' has no tokens",
        "choice 'ab' has the same tokens as 'a-b'",
        "choices cannot be scored where transformers answers: leave them out",
    ]


def test_branches_begin_with_the_prompt() -> None:
    letters: Any = Letters()
    tree = ChoiceTree.of(["ab", "ac", "d"], letters, EOS, 0)
    a, b, c, d = map(ord, "abcd")
    assert tree.branches() == {(): (a, d), (a,): (b, c)}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["a"], "from 2 to 256 classes, got 1"),
        ([f"{n}" for n in range(10_000)], "from 2 to 256 classes, got 10000"),
        ("a,,b", "must not be empty"),
        ("a, b, a", "has 'a' 2 times"),
        (["a", "\udcff"], r"must be Unicode texts, got '\\udcff'"),
    ],
)
def test_choices_that_are_refused(choices: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"choices .*{message}"):
        SamplingParams(choices=choices)


def test_one_text_is_divided_at_its_commas() -> None:
    assert SamplingParams(choices="yes, no,unsure").choices == ("yes", "no", "unsure")
    assert SamplingParams(choices="[A], [B]").choices == ("[A]", "[B]")
    assert SamplingParams(choices=["yes, please", "no"]).choices == ("yes, please", "no")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("[yes, no]", r"'\[yes, no\]' is no JSON array such as \[\"a\", \"b\"\]"),
        (" [1, 2] ", "item 0 of the list must be a string, got 1"),
    ],
)
def test_a_list_without_quotes_is_not_divided_at_its_commas(choices: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingParams(choices=choices)


@pytest.mark.parametrize("backend", [byte_level(SPECIAL), *map(sentencepiece, (True, False))])
def test_classes_stand_as_a_text_would_go_on(backend: Any) -> None:
    tokenizer = Tokenizer(backend, {})
    encode = partial(tokenizer.encode, add_special_tokens=False)
    for prompt, between in [("Answer:", " "), ("Answer: a\n", ""), ("Answer </s>", "")]:
        ids = encode(prompt)
        tree = ChoiceTree.of(["circle", " red circle"], tokenizer, (), ids[-1])
        for path, text in zip(tree.paths, (f"{between}circle", " red circle"), strict=True):
            expected = tokenizer.decode(encode(f"{prompt}{text}"))
            assert tokenizer.decode([*ids, *path]) == expected
