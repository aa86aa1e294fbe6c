"""Finds the sequence that makes steps fail, by bisection. No torch.

When a step fails, its sequences are split into two halves, which are recomputed separately. A half
that fails is split again, until the sequence that makes steps fail is alone.
"""

from __future__ import annotations

from collections import deque

from vlmbatch.engine.sequence import Sequence


class Quarantine:
    """The sequences of failed steps, in groups; the first group is being recomputed.

    ``groups``: queues like the scheduler's own, which it admits sequences from and puts preempted
    ones back to. The first is empty while all of its sequences are running.
    """

    def __init__(self) -> None:
        self.groups: deque[deque[Sequence]] = deque()

    @property
    def num_waiting(self) -> int:
        """Sequences of all groups that are not running."""
        return sum(map(len, self.groups))

    def queue(self, waiting: deque[Sequence], *, idle: bool) -> deque[Sequence]:
        """Where sequences are admitted from: one group after another, then ``waiting``.

        ``idle``: no sequence is running; a first group that is empty has then been computed.
        """
        while self.groups and not self.groups[0] and idle:
            self.groups.popleft()
        return self.groups[0] if self.groups else waiting

    def set_apart(self, failed: list[Sequence], queue: deque[Sequence]) -> Sequence | None:
        """Take the sequences of a failed step out of ``queue``, to be computed in two halves next.

        Returns the one that made the step fail, left where it is, if it was alone in it.
        """
        # Results of an earlier step may have ended a sequence after this one was scheduled.
        apart = [sequence for sequence in failed if not sequence.finished]
        if len(failed) == len(apart) == 1:
            return apart[0]
        for sequence in apart:
            queue.remove(sequence)
        half = len(apart) // 2
        self.groups.extendleft((deque(apart[half:]), deque(apart[:half])))
        return None
