"""An engine without a model or torch that answers every request with given tokens."""

from __future__ import annotations

from vlmbatch.engine.outputs import EngineStatus, SequenceFailure, TokenOutput
from vlmbatch.engine.sequence import Sequence
from vlmbatch.types import FinishReason, Request


class ScriptedEngine:
    """One request at a time, one token a step; the request's ``max_tokens`` ends the answer."""

    fills_step = True
    status = EngineStatus(0, 0, 0, 0, 0)

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids
        self._sequence: Sequence | None = None

    @property
    def num_unfinished(self) -> int:
        return int(self._sequence is not None)

    @property
    def wants_requests(self) -> bool:
        return self._sequence is None

    def expect_no_more(self) -> None:
        pass

    def add(self, request: Request) -> Sequence:
        max_len = len(request.token_ids) + request.sampling.max_tokens
        self._sequence = Sequence(request, max_len, frozenset())
        return self._sequence

    def step(self) -> list[TokenOutput | SequenceFailure]:
        sequence = self._sequence
        assert sequence is not None
        token_id = self._token_ids[len(sequence.output_token_ids)]
        sequence.advance(sequence.num_uncomputed_tokens)
        sequence.resolve(token_id)
        if sequence.finish_reason is not None:
            self._sequence = None
        return [TokenOutput(sequence, token_id, sequence.finish_reason)]

    def finish(self, sequence: Sequence, reason: FinishReason | None) -> None:
        self._sequence = None
