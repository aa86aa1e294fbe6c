"""The signals that end a command, and where they are kept from doing harm."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


def ending_signals() -> tuple[signal.Signals, ...]:
    """SIGINT, SIGTERM, and SIGHUP of a terminal that is gone, unless it is ignored as by nohup."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return signal.SIGINT, signal.SIGTERM
    return signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@contextmanager
def signals_held() -> Iterator[None]:
    """Within, the ending signals wait: a handler that raises while a thread is started or joined
    leaves the locks of ``threading`` in disorder. Main thread only.
    """
    arrived: list[int] = []
    handlers = {
        number: signal.signal(number, lambda each, _: arrived.append(each))
        for number in ending_signals()
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
