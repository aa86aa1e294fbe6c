"""The process that ``python -m vlmbatch`` and the console script start."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import time
from typing import NoReturn


class _End:
    """How this process ends: at once, when all that was registered to run at exit has run.

    To take torch, CUDA and the weights down object by object would take seconds, for memory that
    the system frees anyway.
    """

    def __init__(self) -> None:
        self._status: int | None = None
        self._since = 0.0
        atexit.register(self._leave)  # before all others, which therefore run before it

    def begin(self, status: int) -> NoReturn:
        from vlmbatch.session.signals import ending_signals

        self._status, self._since = status, time.monotonic()
        for number in ending_signals():  # an exception would be raised in whatever ends it
            signal.signal(number, lambda *_: os._exit(status))
        sys.exit(status)  # which waits for threads first

    def _leave(self) -> None:
        if self._status is None:  # something else ends the process
            return
        seconds = time.monotonic() - self._since
        logging.getLogger("vlmbatch").debug("exit: %.2f s for what was to run at the end", seconds)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # full, gone or closed
                stream.flush()
        os._exit(self._status)


def main() -> NoReturn:
    """Run the command line, and end the process with its exit status."""
    end = _End()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the others, until all is imported
    from vlmbatch.cli import main as run_command_line

    end.begin(run_command_line())


if __name__ == "__main__":
    main()
