"""The engine of this process as a replica: stop strings, length limits and failures. No torch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vlmbatch.engine.outputs import SequenceFailure
from vlmbatch.engine.sequence import Sequence
from vlmbatch.errors import RowError
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.replicas.messages import EngineLimits
from vlmbatch.replicas.replica import (
    Completion,
    Event,
    NewTokens,
    OnBegin,
    ReplicaStatus,
    RowFailure,
)
from vlmbatch.replicas.stop_strings import StopChecker
from vlmbatch.types import FinishReason, Request, TokenLogprob

if TYPE_CHECKING:
    from vlmbatch.engine.engine import Engine


class _UnderWay:
    """A request that has not ended. ``num_checked``: tokens that the checker has seen."""

    __slots__ = ("checker", "first_token_at", "logprobs", "num_checked", "sequence", "stream")

    def __init__(self, sequence: Sequence, checker: StopChecker | None, stream: bool) -> None:
        self.sequence = sequence
        self.checker = checker
        self.stream = stream
        self.num_checked = 0
        self.logprobs: list[TokenLogprob] = []
        self.first_token_at: float | None = None


class LocalReplica:
    """A ``Replica`` whose ``poll`` runs a step of ``engine``."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, on_begin: OnBegin | None = None
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._under_way: dict[Sequence, _UnderWay] = {}
        self._sequences: dict[int, Sequence] = {}  # the same by the request's index
        self._refused: list[RowFailure] = []  # that ``poll`` has not returned yet
        self._prompt_tokens = self._cached_tokens = self._generation_tokens = self._answered = 0
        self._begun: set[Sequence] = set()  # told to ``on_begin``
        self._on_begin = on_begin
        if on_begin is not None:
            engine.on_launch = self._launching

    @property
    def limits(self) -> EngineLimits:
        """What the engine takes."""
        engine = self._engine
        return EngineLimits(
            engine.scheduler.max_num_seqs,
            engine.max_model_len,
            engine.kv_cache_tokens,
            on_cpu=engine.device.type == "cpu",
        )

    @property
    def num_unfinished(self) -> int:
        return len(self._under_way) + len(self._refused)

    @property
    def wants_requests(self) -> bool:
        return self._engine.wants_requests

    @property
    def fills_step(self) -> bool:
        return self._engine.fills_step

    @property
    def status(self) -> ReplicaStatus:
        engine = self._engine.status
        return ReplicaStatus(
            running=engine.running,
            waiting=engine.waiting,
            kv_used_tokens=engine.kv_used_tokens,
            kv_total_tokens=engine.kv_total_tokens,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generation_tokens=self._generation_tokens,
            preemptions=engine.preemptions,
            answered=self._answered,
            start=engine.start,
        )

    def submit(self, request: Request, *, stream: bool = False) -> None:
        index = request.index
        assert index not in self._sequences, "two requests of one index"
        try:
            sequence = self._engine.add(request)
        except RowError as error:
            self._refused.append(RowFailure(index, error))
            return
        sampling = request.sampling
        checker = None
        if sampling.stop:
            checker = StopChecker(self._tokenizer, sampling.stop, sampling.min_tokens)
        self._under_way[sequence] = _UnderWay(sequence, checker, stream)
        self._sequences[index] = sequence

    def poll(self) -> list[Event]:
        outputs = self._engine.step() if self._under_way else []
        events: list[Event] = [*self._refused]
        self._refused.clear()
        self._generation_tokens += len(outputs)
        for output in outputs:
            state = self._under_way.get(output.sequence)
            if state is None:  # it has ended; this is of a step that was launched before
                self._generation_tokens -= 1
            elif isinstance(output, SequenceFailure):
                self._generation_tokens -= 1
                events.append(RowFailure(self._forget(state), output.error))
            else:
                if state.first_token_at is None:
                    self._begin(state)
                if output.logprob is not None:
                    state.logprobs.append(output.logprob)
                reason, text_end = output.finish_reason, None
                if state.checker is not None:
                    text_end = self._check(state, state.checker, output.token_id)
                    if text_end is not None:
                        reason = "stop"  # also where it is the last token by its length
                if reason is not None:
                    events.append(self._complete(state, reason, text_end))
                elif state.stream:
                    events.append(
                        NewTokens(
                            state.sequence.request.index,
                            (output.token_id,),
                            () if output.logprob is None else (output.logprob,),
                        )
                    )
        return events

    def cancel(self, index: int) -> None:
        sequence = self._sequences.get(index)
        if sequence is None:
            self._refused = [failure for failure in self._refused if failure.index != index]
        else:
            self._engine.finish(sequence, None)
            self._forget(self._under_way[sequence])

    def drop_waiting(self) -> None:
        for sequence in self._engine.drop_waiting():
            self._forget(self._under_way[sequence])

    def take_back(self, most: int) -> list[int]:
        return [self._forget(self._under_way[each]) for each in self._engine.take_back(most)]

    def expect_no_more(self) -> None:
        self._engine.expect_no_more()

    def reset(self) -> None:
        self._under_way.clear()
        self._sequences.clear()
        self._refused.clear()
        self._begun.clear()
        self._engine.reset()

    def _launching(self, sequences: list[Sequence]) -> None:
        new = [each for each in sequences if each not in self._begun and each in self._under_way]
        if new and self._on_begin is not None:
            self._begun.update(new)
            self._on_begin([each.request.index for each in new])

    def _begin(self, state: _UnderWay) -> None:
        state.first_token_at = time.monotonic()
        self._prompt_tokens += state.sequence.num_prompt_tokens
        self._cached_tokens += state.sequence.num_cached_tokens or 0

    def _check(self, state: _UnderWay, checker: StopChecker, token_id: int) -> int | None:
        """Where the text ends if a stop string ends the sequence, which is then finished."""
        state.num_checked += 1
        text_end = checker.push(token_id)
        if text_end is not None:
            self._engine.finish(state.sequence, "stop")
        return text_end

    def _complete(self, state: _UnderWay, reason: FinishReason, text_end: int | None) -> Completion:
        sequence = state.sequence
        token_ids = sequence.output_token_ids
        if state.checker is not None:
            del token_ids[state.num_checked :]  # of steps that were handed out with this one
        assert state.first_token_at is not None
        self._answered += sequence.request.is_row
        return Completion(
            self._forget(state),
            tuple(token_ids),
            reason,
            sequence.num_cached_tokens or 0,
            state.first_token_at,
            text_end,
            tuple(state.logprobs),
            prompt_logprobs=tuple(
                sequence.prompt_logprobs[place] for place in sorted(sequence.prompt_logprobs)
            ),
        )

    def _forget(self, state: _UnderWay) -> int:
        """Drop the state of a request that has ended; its index."""
        del self._under_way[state.sequence]
        self._begun.discard(state.sequence)
        index = state.sequence.request.index
        del self._sequences[index]
        return index
