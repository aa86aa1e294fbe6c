"""What the engine gives back: the outputs of a step, and how it is doing. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlmbatch.engine.sequence import Sequence
from vlmbatch.errors import RowError
from vlmbatch.start_times import EngineStart
from vlmbatch.types import FinishReason, TokenLogprob

NOT_FINITE = (
    "the model computed no finite numbers for this row, as where float16 overflows (try --dtype "
    "bfloat16 or float32) or weights are damaged"
)


@dataclass(slots=True)  # not frozen: made for every token, in a third of the time
class TokenOutput:
    """A new token of a sequence; ``finish_reason`` is set on its last one."""

    sequence: Sequence
    token_id: int
    finish_reason: FinishReason | None
    logprob: TokenLogprob | None = None  # where its request asks for it


@dataclass(frozen=True, slots=True)
class SequenceFailure:
    """A sequence that the engine had to give up."""

    sequence: Sequence
    error: RowError


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The engine between two steps.

    ``kv_used_tokens``: held by running sequences; cached prefixes are free to be taken.
    ``preemptions``: since the engine was made or reset.
    """

    running: int
    waiting: int
    kv_used_tokens: int
    kv_total_tokens: int
    preemptions: int
    start: EngineStart = field(default_factory=EngineStart)
