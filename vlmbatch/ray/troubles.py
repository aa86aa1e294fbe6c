"""Parts that were lost, are locked or could not be put: how long to be patient with each."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vlmbatch.config import Part
from vlmbatch.errors import EnginesLostError, OutputLockedError
from vlmbatch.remote.errors import RemoteFailedError

MAX_LOSSES = 3  # of one part, without a row done between them
MAX_FAILURES = 3  # of the store, at one part

_LOCK_SECONDS = 60.0  # for a part that something else writes
_RETRY_SECONDS = 1.0
_STORE_SECONDS = 30.0  # after a failure of the store that the worker has not got over either


@dataclass(slots=True)
class _Trouble:
    losses: int = 0  # since a row was done
    failures: int = 0  # of the store
    rows_done: int = 0
    locked_since: float | None = None
    not_before: float = 0.0


class Troubles:
    """What has happened to parts that are not done yet."""

    def __init__(self) -> None:
        self._of: dict[Part, _Trouble] = {}

    def may_begin(self, part: Part) -> bool:
        """Whether a part may be given out now."""
        return part not in self._of or self._of[part].not_before <= time.monotonic()

    def over(self, part: Part) -> None:
        """It is done."""
        self._of.pop(part, None)

    def locked(self, part: Part, error: OutputLockedError) -> None:
        """Something writes the part: a worker of ours that was given up and goes on, or one of a
        driver that has just ended; or a run of somebody else's.

        Raises:
            OutputLockedError: it was never ours, and the time for drivers to end is over.
        """
        trouble = self._of.setdefault(part, _Trouble())
        now = time.monotonic()
        trouble.locked_since = trouble.locked_since or now
        trouble.not_before = now + _RETRY_SECONDS
        if not trouble.losses and now - trouble.locked_since > _LOCK_SECONDS:
            raise error

    def failed(self, part: Part, error: RemoteFailedError) -> None:
        """The store could not be reached, or was busy.

        Raises:
            RemoteFailedError: too often.
        """
        trouble = self._of.setdefault(part, _Trouble())
        trouble.failures += 1
        trouble.not_before = time.monotonic() + _STORE_SECONDS
        if trouble.failures > MAX_FAILURES:
            raise error

    def lost(self, part: Part, rows_done: int, node: str, cause: str) -> None:
        """The worker that had it is gone; ``rows_done``: of the part, as it was told last.

        Raises:
            EnginesLostError: it was lost too often.
        """
        trouble = self._of.setdefault(part, _Trouble())
        trouble.losses = 1 if rows_done > trouble.rows_done else trouble.losses + 1
        trouble.rows_done = max(rows_done, trouble.rows_done)
        if trouble.losses > MAX_LOSSES:
            raise EnginesLostError(
                f"part {part} was lost {trouble.losses} times without a row done between, last on "
                f"node {node}: {cause}. What is done is kept: run the same command again to resume"
            )
