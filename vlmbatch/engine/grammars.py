"""Grammars that answers follow: where each one stands, and which tokens may come next. No torch."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlmbatch.config.grammar import grammar_limits, on_deep_stack, short_reason
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

_MAX_COMPILED = 256  # grammars that are kept; rows mostly have the same few
_MAX_THREADS = 16
_DEAD_ENDS = ("NoExtension", "NoExtensionBias")  # as llguidance names them


class Constraint:
    """Where the answer of one sequence stands in its grammar.

    ``error``: why it cannot go on. Its sequence then ends with the next token, on whatever rank it
    is looked at.
    """

    __slots__ = ("_compiled", "_matcher", "ends", "error", "num_consumed")

    def __init__(self, compiled: Future[LLMatcher | str], ends: NDArray[np.int32]) -> None:
        """``ends``: (W,) int32, the mask of the tokens that end an answer."""
        self._compiled = compiled
        self._matcher: LLMatcher | None = None
        self.ends = ends
        self.num_consumed = 0  # tokens of the answer that the matcher has seen
        self.error: RowError | None = None

    @property
    def matcher(self) -> LLMatcher | None:
        """Its own one, once the grammar is compiled, for which it waits; None in error."""
        if self._matcher is None and self.error is None:
            compiled = self._compiled.result()
            if isinstance(compiled, str):
                self.fail(compiled)
            else:
                self._matcher = compiled.deep_copy()
        return self._matcher

    def fail(self, reason: str) -> None:
        """End the answer with an error."""
        self.error = RowError(
            ErrorCode.SAMPLING_INVALID,
            f"json_schema or regex cannot be followed, after {self.num_consumed} tokens of the "
            f"answer: {reason}",
        )


class Grammars:
    """Compiles grammars for one tokenizer. ``vocab_size``: the width of the model's logits."""

    def __init__(
        self, tokenizer: Tokenizer, eos_token_ids: Collection[int], vocab_size: int
    ) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = sorted(eos_token_ids)
        self._vocab_size = vocab_size
        self._compiled: OrderedDict[str, Future[LLMatcher | str]] = OrderedDict()

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
        compiled = self._compiled.pop(grammar, None)
        if compiled is None:
            compiled = on_deep_stack(lambda: self._compile(grammar))
        self._compiled[grammar] = compiled
        if len(self._compiled) > _MAX_COMPILED:
            self._compiled.popitem(last=False)
        return Constraint(compiled, self._ends)

    def _compile(self, grammar: str) -> LLMatcher | str:
        """A matcher at the start, or why there is none."""
        from llguidance import LLMatcher

        try:
            return LLMatcher(self._known, grammar, log_level=0, limits=grammar_limits())
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  a panic in Rust is no narrower
            return short_reason(str(error) or type(error).__name__)

    @cached_property
    def _num_ids(self) -> int:
        """Of tokens: of the tokenizer's, or the model's where these are more."""
        return max(self._vocab_size, self._tokenizer.num_ids)

    @cached_property
    def _ends(self) -> NDArray[np.int32]:
        mask = np.zeros(-(-self._num_ids // 32), np.uint32)
        for token_id in self._eos_token_ids:
            mask[token_id // 32] |= np.uint32(1 << token_id % 32)
        return mask.view(np.int32)

    @cached_property
    def _known(self) -> LLTokenizer:
        """The tokenizer as llguidance has it, which takes it a second."""
        from llguidance import LLTokenizer

        return LLTokenizer(
            self._tokenizer.serialized(), n_vocab=self._num_ids, eos_token=self._eos_token_ids
        )


def fill_masks(
    constraints: Seq[Constraint], outputs: Seq[list[int]], masks: NDArray[np.int32]
) -> None:
    """Write each answer's mask, (M, W) of int32: which tokens may follow ``outputs``.

    W: words of 32 tokens, as of ``Constraint.ends``. Several are computed at once, without the
    interpreter lock. An answer that cannot go on has its ``error`` set, and a mask of what ends it.
    """
    new, rows = [], []
    for row, (constraint, output) in enumerate(zip(constraints, outputs, strict=True)):
        matcher = constraint.matcher
        if matcher is None:
            masks[row] = constraint.ends
            continue
        rows.append((matcher, row))
        if constraint.num_consumed < len(output):
            assert len(output) == constraint.num_consumed + 1, "each token has had its mask"
            new.append((matcher, output[-1]))
            constraint.num_consumed += 1
    if new:
        _executor().consume_token_par(new)
    if rows:
        _executor().unsafe_compute_mask_ptr(rows, masks.ctypes.data, masks.strides[0], len(masks))
    for matcher, row in rows:
        if matcher.is_error() and constraints[row].error is None:
            reason = short_reason(matcher.get_error())
            if reason in _DEAD_ENDS:
                reason = "no token of the vocabulary may come next"
            constraints[row].fail(reason)


@cache
def _executor() -> LLExecutor:
    from llguidance import LLExecutor

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return LLExecutor(min(_MAX_THREADS, max(1, (cores or 1) // 2)))
