"""Calls that may take long, and are left to themselves where nobody can wait for them any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class CancellableCalls:
    """Makes calls for several threads, each of which waits for its own until all are cancelled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: set[Future[Any]] = set()
        self._cancelled = False

    def run(self, call: Callable[[], T]) -> T:
        """What ``call`` returns or raises.

        Raises:
            CancelledError: calls were cancelled. It may still be running, on a thread of its own.
        """
        answer: Future[T] = Future()
        with self._lock:
            if self._cancelled:
                raise CancelledError
            self._under_way.add(answer)
        try:
            # A daemon: the process can end while it waits.
            threading.Thread(target=_make, args=(call, answer), name="fetch", daemon=True).start()
            return answer.result()
        finally:
            with self._lock:
                self._under_way.discard(answer)
            del answer  # the error that it has holds this frame, and those that have a file's bytes

    def cancel(self) -> None:
        """Nobody waits any more, and no call is made."""
        with self._lock:
            self._cancelled = True
            under_way = list(self._under_way)
        for answer in under_way:
            answer.cancel()


def _make(call: Callable[[], T], answer: Future[T]) -> None:
    try:
        made = call()
    except BaseException as error:  # noqa: BLE001  raised again to who waits
        with suppress(InvalidStateError):  # nobody does
            answer.set_exception(error)
    else:
        with suppress(InvalidStateError):
            answer.set_result(made)
    finally:
        del call, answer  # as above
