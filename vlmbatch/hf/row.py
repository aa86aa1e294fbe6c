"""A row's answer while a batch is generated: where it ends and what is told of it. No torch."""

from __future__ import annotations

import time
from collections.abc import Collection

from vlmbatch.engine.grammars import Constraint, Grammars
from vlmbatch.engine.outputs import NOT_FINITE
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.replicas.replica import Completion, NewTokens, RowFailure
from vlmbatch.replicas.stop_strings import StopChecker
from vlmbatch.types import FinishReason, Request, TokenLogprob


class RowUnderWay:
    """One request, from its submission to its end.

    ``eos_token_ids``: those of the model. ``limit``: tokens that its answer can have.
    ``grammars``: where it may follow one.

    Raises:
        RowError: its grammar cannot end.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        eos_token_ids: Collection[int],
        max_model_len: int,
        *,
        stream: bool,
        grammars: Grammars | None = None,
    ) -> None:
        self.request = request
        self._grammars = grammars
        self.stream = stream
        self.num_prompt_tokens = len(request.token_ids)
        self.limit = min(request.sampling.max_tokens, max_model_len - self.num_prompt_tokens)
        self.ended = False  # answered, failed or given up
        self._tokenizer = tokenizer
        self.stop_token_ids = set(request.sampling.stop_token_ids)
        if not request.sampling.ignore_eos:
            self.stop_token_ids |= set(eos_token_ids)
        self._num_told = 0  # tokens that were streamed, also by a batch that failed later
        self._first_token_at: float | None = None
        self.restart()

    def restart(self) -> None:
        """Forget the tokens of a batch that failed."""
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.constraint: Constraint | None = None
        sampling = self.request.sampling
        if self._grammars is not None and (grammar := sampling.grammar) is not None:
            self.constraint = self._grammars.constraint(grammar)
        self._checker = None
        if sampling.stop:
            self._checker = StopChecker(self._tokenizer, sampling.stop, sampling.min_tokens)

    def push(
        self, token_id: int, logprob: TokenLogprob | None = None
    ) -> Completion | NewTokens | RowFailure | None:
        """Take the next token, -1 where the model computed none; what there is to tell of it."""
        if token_id < 0:
            self.ended = True
            return RowFailure(self.request.index, RowError(ErrorCode.ENGINE_ERROR, NOT_FINITE))
        if self._first_token_at is None:
            self._first_token_at = time.monotonic()
        self.token_ids.append(token_id)
        own = () if logprob is None else (logprob,)
        self.logprobs += own
        reason: FinishReason | None = None
        text_end = None
        if token_id in self.stop_token_ids:
            reason = "stop"
        elif len(self.token_ids) == self.limit:
            reason = "length"
        if self._checker is not None:
            text_end = self._checker.push(token_id)
            if text_end is not None:
                reason = "stop"  # also where it is the last token by its length
        index = self.request.index
        if reason is not None:
            self.ended = True
            if self.constraint is not None and self.constraint.error is not None:
                return RowFailure(index, self.constraint.error)
            token_ids = tuple(self.token_ids)
            logprobs = tuple(self.logprobs)
            return Completion(index, token_ids, reason, 0, self._first_token_at, text_end, logprobs)
        if self.stream and len(self.token_ids) > self._num_told:
            self._num_told += 1
            return NewTokens(index, (token_id,), own)
        return None
