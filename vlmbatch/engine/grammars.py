"""Grammars that answers follow: where each one stands, and which tokens may come next. No torch."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Collection
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlmbatch.config.grammar import grammar_limits, on_deep_stack, short_reason
from vlmbatch.errors import ErrorCode, RowError

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

_MAX_COMPILED = 256  # grammars that are kept; rows mostly have the same few
_MAX_THREADS = 16
_DEAD_ENDS = ("NoExtension", "NoExtensionBias")  # as llguidance names them


class Constraint:
    """Where the answer of one sequence stands in its grammar.

    ``error``: why it could not go on. Its sequence then ends with the next token, on whatever rank
    it is looked at.
    """

    __slots__ = ("_compiled", "_matcher", "error", "num_consumed")

    def __init__(self, compiled: Future[LLMatcher]) -> None:
        self._compiled = compiled
        self._matcher: LLMatcher | None = None
        self.num_consumed = 0  # tokens of the answer that the matcher has seen
        self.error: RowError | None = None

    @property
    def matcher(self) -> LLMatcher:
        """Its own one, once the grammar is compiled; waits for that."""
        if self._matcher is None:
            self._matcher = self._compiled.result().deep_copy()
        return self._matcher


class Grammars:
    """Compiles grammars for one tokenizer.

    ``serialized``: the tokenizer as the tokenizers library writes it. ``vocab_size``: the width of
    the model's logits.
    """

    def __init__(
        self, serialized: Callable[[], str], eos_token_ids: Collection[int], vocab_size: int
    ) -> None:
        self._serialized = serialized
        self._eos_token_ids = sorted(eos_token_ids)
        self._vocab_size = vocab_size
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()

    def constraint(self, grammar: str) -> Constraint:
        """Begin to compile a grammar, where it is not known; an answer at its start.

        Raises:
            RowError: the model has no token that could end the answer.
        """
        if not self._eos_token_ids:
            raise RowError(
                ErrorCode.SAMPLING_INVALID,
                "json_schema and regex need an end-of-sequence token, and this model names none",
            )
        compiled = self._compiled.pop(grammar, None) or on_deep_stack(
            lambda: self._compile(grammar)
        )
        self._compiled[grammar] = compiled
        if len(self._compiled) > _MAX_COMPILED:
            self._compiled.popitem(last=False)
        return Constraint(compiled)

    def _compile(self, grammar: str) -> LLMatcher:
        """Never raises for a grammar: a matcher in error has masks that end the answer."""
        from llguidance import LLMatcher

        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=grammar_limits())

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        return LLTokenizer(
            self._serialized(), n_vocab=self._vocab_size, eos_token=self._eos_token_ids
        )


def fill_masks(
    constraints: Seq[Constraint], outputs: Seq[list[int]], masks: NDArray[np.int32]
) -> None:
    """Write each answer's mask, (M, W) of int32: which tokens may follow ``outputs``.

    W: words of 32 tokens, for all of the logits. Several are computed at once, without the
    interpreter lock. An answer that cannot go on has its ``error`` set, and a mask of what ends it.
    """
    matchers = [constraint.matcher for constraint in constraints]
    new = []
    for constraint, matcher, output in zip(constraints, matchers, outputs, strict=True):
        if constraint.num_consumed < len(output):
            assert len(output) == constraint.num_consumed + 1, "each token has had its mask"
            new.append((matcher, output[-1]))
            constraint.num_consumed += 1
    if new:
        _executor().consume_token_par(new)
    _executor().unsafe_compute_mask_ptr(
        list(zip(matchers, range(len(matchers)), strict=True)),
        masks.ctypes.data,
        masks.strides[0],
        len(masks),
    )
    for constraint, matcher in zip(constraints, matchers, strict=True):
        if matcher.is_error() and constraint.error is None:
            constraint.error = _failure(matcher, constraint.num_consumed)


@cache
def _executor() -> LLExecutor:
    from llguidance import LLExecutor

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return LLExecutor(min(_MAX_THREADS, max(1, (cores or 1) // 2)))


def _failure(matcher: LLMatcher, num_tokens: int) -> RowError:
    reason = short_reason(matcher.get_error())
    if reason in _DEAD_ENDS:
        reason = "no token of the vocabulary may come next"
    return RowError(
        ErrorCode.SAMPLING_INVALID,
        f"json_schema or regex cannot be followed, after {num_tokens} tokens of the answer: "
        f"{reason}",
    )
