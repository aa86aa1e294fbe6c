"""How a command ends early: signals, and a reader that closes standard output."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import typer

from vlmbatch.errors import OutputError
from vlmbatch.log import logger

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
CLOSED_PIPE = 128 + signal.SIGPIPE


class Terminated(SystemExit):
    """SIGTERM arrived; unwinds the stack so that temporary files are removed."""


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(128 + signum)


def install_signal_handlers() -> None:
    """Make SIGTERM unwind the main thread as Ctrl-C does. Call it from the main thread."""
    signal.signal(signal.SIGTERM, _terminate)


@contextmanager
def early_exits(describe: Callable[[], str]) -> Iterator[None]:
    """End the command with 130, 143 or 141 on SIGINT, SIGTERM or a closed standard output.

    ``describe`` says what became of the work, for the first two; a closed pipe ends quietly, as
    ``vlmbatch ... | head`` should.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        logger.error("interrupted: %s", describe())
        raise typer.Exit(INTERRUPTED) from error
    except Terminated as error:
        logger.error("terminated: %s", describe())
        raise typer.Exit(TERMINATED) from error
    except BrokenPipeError as error:
        _leave_closed_stdout()
        raise typer.Exit(CLOSED_PIPE) from error
    except OutputError as error:
        if not isinstance(error.__cause__, BrokenPipeError):
            raise
        _leave_closed_stdout()
        raise typer.Exit(CLOSED_PIPE) from error


def _leave_closed_stdout() -> None:
    """Point standard output elsewhere, so that the interpreter's last flush meets no pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
