"""Calling the command line in this process, without what it leaves behind."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import typer.main

from vlmbatch.cli import main

# Typer makes the commands anew at every call, which takes it longer than many of the runs here.
typer.main.get_command = cache(typer.main.get_command)


@contextmanager
def own_process() -> Iterator[None]:
    """Give back the log and signal handlers that ``main`` takes over."""
    root = logging.getLogger()
    signals = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("vlmbatch").setLevel(logging.NOTSET)
        logging.captureWarnings(False)
        for each, handler in signals.items():
            signal.signal(each, handler)


def call(arguments: Sequence[object]) -> int:
    """The exit status of ``vlmbatch ARGUMENTS``."""
    with own_process():
        return main([str(argument) for argument in arguments])
