"""How a command ends early: signals, and a reader that closes standard output."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TextIO

import typer

from vlmbatch.errors import OutputError, VlmbatchError, is_shortage
from vlmbatch.log import logger
from vlmbatch.session.signals import ending_signals

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
HUNG_UP = 128 + signal.SIGHUP
CLOSED_PIPE = 128 + signal.SIGPIPE
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EPIPE, errno.EBADF)


class Terminated(SystemExit):
    """SIGTERM or SIGHUP arrived; unwinds the stack so that temporary files are removed."""

    def __init__(self, number: int) -> None:
        self.status = 128 + number
        super().__init__(self.status)


# Signals that were raised on the main thread. Native code that it was in, such as a reader of
# weights, may make another error of what was raised.
_raised: list[int] = []


def _raise(signum: int, frame: FrameType | None) -> NoReturn:
    _raised.append(signum)
    raise KeyboardInterrupt if signum == signal.SIGINT else Terminated(signum)


def status_of(error: BaseException) -> int:
    """The exit status of a command that ``error`` has ended; 70 where it is a bug of ours."""
    if isinstance(error, VlmbatchError):
        return error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, typer.Exit):
        return error.exit_code
    if is_shortage(error):
        return OutputError.exit_status
    return error.status if isinstance(error, Terminated) else VlmbatchError.exit_status


def fill_closed_descriptors() -> None:
    """Open /dev/null where standard input, output or error is closed.

    The next file would take its number: a journal that reads as standard input, or log lines in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number is free
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115  lives as long as the process


def install_signal_handlers() -> None:
    """Make SIGTERM and SIGHUP unwind the main thread as Ctrl-C does. Call it from that thread."""
    _raised.clear()
    for number in ending_signals():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


@contextmanager
def early_exits(describe: Callable[[], str]) -> Iterator[None]:
    """End the command with 130, 143, 129 or 141 on SIGINT, SIGTERM, SIGHUP or a closed output.

    ``describe`` says what became of the work, for the signals; a closed pipe ends quietly, as
    ``vlmbatch ... | head`` should.
    """
    try:
        yield
    except (KeyboardInterrupt, Terminated) as error:
        raise _signalled(status_of(error), describe()) from error
    except Exception as error:
        if _raised:
            raise _signalled(128 + _raised[0], describe()) from error
        if not isinstance(error, BrokenPipeError) and not (
            isinstance(error, OutputError) and isinstance(error.__cause__, BrokenPipeError)
        ):
            raise
        _leave(sys.stdout)
        raise typer.Exit(CLOSED_PIPE) from error


def _signalled(status: int, outcome: str) -> typer.Exit:
    """Say what became of the work; the end of the command."""
    logger.error("%s: %s", "interrupted" if status == INTERRUPTED else "terminated", outcome)
    return typer.Exit(status)


@contextmanager
def stdout_failures() -> Iterator[None]:
    """Turn a standard output that cannot be written, now or at its last flush, into an error.

    Raises:
        OutputError: it failed, as on a full disk.
        typer.Exit: its reader has closed it.
    """
    try:
        yield
        sys.stdout.flush()
    except (OSError, OutputError) as error:
        failure = _stdout_failure(error)
        if failure is None:  # it is another file that failed
            raise
        _leave(sys.stdout)
        if isinstance(failure, BrokenPipeError):
            raise typer.Exit(CLOSED_PIPE) from error
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write standard output: {failure.strerror}") from error
    except SystemExit as error:  # rich's and Typer's end where a reader has left
        if isinstance(error, Terminated) or not isinstance(error.__context__, BrokenPipeError):
            raise
        _leave(sys.stdout)
        raise typer.Exit(CLOSED_PIPE) from error


def _stdout_failure(error: Exception) -> OSError | None:
    """Why standard output cannot be written; None when it can, and ``error`` has another cause."""
    try:
        sys.stdout.flush()  # what could not be written is still there, and fails once more
    except OSError as failure:
        return failure
    # Unbuffered, nothing is left to try. Whatever writes other files reports them by name itself.
    if isinstance(error, OSError) and error.errno in _WRITE_ERRORS and not error.filename:
        return error
    return None


def leave_failed_stderr() -> None:
    """Drop what standard error does not take: the interpreter would change the exit status."""
    try:
        sys.stderr.flush()
    except OSError:
        _leave(sys.stderr)


def _leave(stream: TextIO) -> None:
    """Point a stream elsewhere, so that the interpreter's last flush meets no failure."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
