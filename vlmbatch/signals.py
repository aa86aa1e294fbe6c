"""Signals kept from where they do harm."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signals_held() -> Iterator[None]:
    """Within, SIGINT and SIGTERM wait: a handler that raises while a thread is started or joined
    leaves the locks of ``threading`` in disorder. Main thread only.
    """
    arrived: list[int] = []
    handlers = {
        number: signal.signal(number, lambda each, _: arrived.append(each))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
