"""An engine without a model or torch: what it answers depends on a row's tokens alone."""

from __future__ import annotations

import hashlib
import time
from array import array
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace

from vlmbatch.engine.outputs import EngineStatus, SequenceFailure, TokenOutput
from vlmbatch.engine.sequence import Sequence
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.types import FinishReason, Request

EOS = 2
FIRST_TEXT_TOKEN = 4  # of model_folder's tokenizer, one for each printable character
NUM_TEXT_TOKENS = 94


class FakeEngine:
    """``Engine``'s part in a run: rows join, take a step for each token, and end out of order.

    One row in sixty-four fails. ``computed`` is told the rows that a step has ended; rows from
    ``endless_from`` on never end.
    """

    def __init__(
        self,
        computed: Callable[[list[int]], None],
        max_num_seqs: int = 32,
        step_seconds: float = 0.0,
        endless_from: int | None = None,
    ) -> None:
        self._computed = computed
        self._max_num_seqs = max_num_seqs
        self._step_seconds = step_seconds
        self._endless_from = endless_from
        self.seconds = 0.0  # of processor time in ``step``
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, list[int]] = {}
        self._begun: set[Sequence] = set()

    device = SimpleNamespace(type="cpu")
    on_launch: Callable[[list[Sequence]], None] | None = None

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def wants_requests(self) -> bool:
        return len(self._waiting) < self._max_num_seqs

    @property
    def fills_step(self) -> bool:
        return bool(self._waiting)

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(len(self._running), len(self._waiting), 0, 0, 0)

    def add(self, request: Request) -> Sequence:
        max_len = len(request.token_ids) + request.sampling.max_tokens
        sequence = Sequence(request, max_len, frozenset({EOS}))
        self._waiting.append(sequence)
        return sequence

    def expect_no_more(self) -> None:
        pass

    def step(self) -> list[TokenOutput | SequenceFailure]:
        started = time.thread_time()
        try:
            return self._step()
        finally:
            self.seconds += time.thread_time() - started

    def _step(self) -> list[TokenOutput | SequenceFailure]:
        if self._step_seconds:
            time.sleep(self._step_seconds)
        while self._waiting and len(self._running) < self._max_num_seqs:
            sequence = self._waiting.popleft()
            request = sequence.request
            is_json = request.sampling.json_schema is not None
            answer = json_tokens_of if is_json else tokens_of
            self._running[sequence] = answer(request.token_ids)
        self._launch()
        outputs: list[TokenOutput | SequenceFailure] = []
        for sequence, tokens in self._running.items():
            if self._endless_from is not None and sequence.request.index >= self._endless_from:
                continue
            if not tokens:
                error = RowError(ErrorCode.ENGINE_ERROR, "the fake engine fails on this row")
                outputs.append(SequenceFailure(sequence, error))
                continue
            token_id = tokens[len(sequence.output_token_ids)]
            sequence.advance(sequence.num_uncomputed_tokens)
            sequence.resolve(token_id)
            outputs.append(TokenOutput(sequence, token_id, sequence.finish_reason))
        ended = [
            output.sequence
            for output in outputs
            if isinstance(output, SequenceFailure) or output.finish_reason is not None
        ]
        for sequence in ended:
            del self._running[sequence]
            self._begun.discard(sequence)
        if ended:
            self._computed([sequence.request.index for sequence in ended])
        return outputs

    def _launch(self) -> None:
        self._begun.update(self._running)
        if self.on_launch is not None:
            self.on_launch(list(self._running))

    def drop_waiting(self) -> list[Sequence]:
        dropped = list(self._waiting)
        self._waiting.clear()
        return dropped

    def take_back(self, most: int) -> list[Sequence]:
        new = [sequence for sequence in self._waiting if sequence not in self._begun]
        taken = new[max(0, len(new) - most) :]
        for sequence in taken:
            self._waiting.remove(sequence)
        return taken

    def reset(self) -> None:
        self._waiting.clear()
        self._running.clear()
        self._begun.clear()

    def finish(self, sequence: Sequence, reason: FinishReason | None) -> None:
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        self._running.pop(sequence, None)
        self._begun.discard(sequence)


def tokens_of(prompt: list[int]) -> list[int]:
    """The answer to a prompt, of two to five tokens with the last; none where the engine fails."""
    digest = hashlib.blake2b(array("q", prompt).tobytes(), digest_size=8).digest()
    if digest[0] < 4:
        return []
    texts = [FIRST_TEXT_TOKEN + byte % NUM_TEXT_TOKENS for byte in digest[1 : 2 + digest[0] % 4]]
    return [*texts, EOS]


def json_tokens_of(prompt: list[int]) -> list[int]:
    """An object with a number and a list in the place of what ``tokens_of`` has."""
    texts = tokens_of(prompt)
    if not texts:
        return []
    answer = f'{{"count":{texts[0]},"tags":{["a", "b"][: len(texts) % 3]}}}'.replace("'", '"')
    tokens = [
        FIRST_TEXT_TOKEN + ord(character) - ord("!") for character in answer if character > " "
    ]
    return [*tokens, EOS]
