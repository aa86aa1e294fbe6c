"""What a step computes, as the scheduler hands it on. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from vlmbatch.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class GranuleCopy:
    """``count`` granules of the pool to copy before a step: from ``source`` on, to ``target``."""

    source: int
    target: int
    count: int


@dataclass(slots=True)  # not frozen: made for every token, in a third of the time
class ScheduledChunk:
    """Tokens ``start`` to ``start + length`` of a sequence, computed in one step.

    ``needs_sampling`` is set when the chunk ends at the sequence's last token: the step then
    samples the next one. ``copy``: what the sequence takes over of another's block, before
    ``start``.
    """

    sequence: Sequence
    start: int
    length: int
    needs_sampling: bool
    copy: GranuleCopy | None = None
