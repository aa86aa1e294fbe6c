"""Ending a run before its last row: on a signal, at a deadline, when too many rows fail."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vlmbatch.errors import VlmbatchError
from vlmbatch.log import logger
from vlmbatch.session.signals import ending_signals
from vlmbatch.stats import RunStats

_MIN_ROWS = 200  # before these are done, a share of errors says little


class RunStoppedError(VlmbatchError):
    """The run ended early, on purpose; what is done is kept, and the same command resumes it."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class StopRequest:
    """Tells the answer loop to admit no more rows, and for how long to finish those under way.

    ``deadline_s``: seconds from now after which the run ends by itself. ``max_error_rate``: share
    of failed rows among those that this process has begun, above which it ends.
    """

    def __init__(
        self,
        grace_s: float = 20.0,
        deadline_s: float | None = None,
        max_error_rate: float | None = None,
    ) -> None:
        self._grace_s = grace_s
        self._deadline = None if deadline_s is None else time.monotonic() + deadline_s
        self._max_error_rate = max_error_rate
        self._give_up_at = 0.0
        self._interruptible = False
        self.reason: RunStoppedError | None = None

    def check(self, stats: RunStats) -> bool:
        """Whether to stop admitting rows."""
        if self.reason is None:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self.request(RunStoppedError("stopped at the deadline", 128 + signal.SIGTERM))
            elif self._max_error_rate is not None:
                self._check_errors(stats, self._max_error_rate)
        return self.reason is not None

    def request(self, reason: RunStoppedError) -> None:
        """Stop; the first reason stands."""
        if self.reason is None:
            self._give_up_at = time.monotonic() + self._grace_s
            self.reason = reason

    def announce(self, stats: RunStats) -> None:
        """Tell the user that the run is ending."""
        stats.stage = "stopping"
        logger.info(
            "stopping: finishing the rows under way, for at most %g s; another signal ends at once",
            self._grace_s,
        )

    @property
    def out_of_grace(self) -> bool:
        """Whether to give up the rows that are still in the engine."""
        return self.reason is not None and time.monotonic() >= self._give_up_at

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within, a first ending signal stops gracefully, a second gives up rows under way.

        Neither is raised, except by ``interruptible``: anywhere else it could leave a lock held or
        a thread without its end. On another thread than the main one, where no signal arrives,
        nothing is changed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in ending_signals()}

        def stop(number: int, frame: FrameType | None) -> None:
            if self.reason is None:
                name = signal.Signals(number).name
                self.request(RunStoppedError(f"stopped by {name}", 128 + number))
                return
            if number == signal.SIGHUP:  # the shell sends one, and the kernel another
                return
            self._give_up_at = time.monotonic()
            if self._interruptible:
                raise self.reason

        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within, a second signal raises the reason of the first: for what may take long."""
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def _check_errors(self, stats: RunStats, limit: float) -> None:
        done, failed = stats.num_new, stats.num_new_errors
        # Errors are done soonest: rows under way count as answered.
        if done >= _MIN_ROWS and failed > limit * (stats.rows_begun - stats.rows_resumed):
            new = Counter(dict(stats.errors))  # a copy: another thread may be adding to it
            new.subtract(dict(stats.errors_resumed))
            worst = new.most_common(1)[0][0]
            self.request(
                RunStoppedError(
                    f"stopped: {failed:,} of {done:,} rows failed, more than the {limit:.1%} that "
                    f"--max-error-rate allows. Most often {worst}, as in "
                    f"{stats.error_examples[worst]}. Mend the cause, and add --retry-failed to "
                    "answer these rows again",
                    1,
                )
            )
