"""An engine that answers by a plan, in any order, and one who checks what a replica tells of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from fake_engine import EOS, FakeEngine
from hypothesis import strategies as st
from letter_tokenizer import LetterTokenizer

from vlmbatch.config import SamplingParams
from vlmbatch.engine.outputs import SequenceFailure, TokenOutput
from vlmbatch.engine.sequence import Sequence
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.replicas.replica import Completion, Event, NewTokens, Replica, RowFailure
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

    def __init__(self, plans: list[Plan], rng: random.Random, max_num_seqs: int = 3) -> None:
        super().__init__(lambda indexes: None, max_num_seqs)
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
        self._launch()
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

    def __init__(self, replica: Replica) -> None:
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
