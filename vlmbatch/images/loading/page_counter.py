"""How many pages documents have, found out in a process that a document may crash."""

from __future__ import annotations

import pickle
import time

from vlmbatch.config import ImageLimits
from vlmbatch.errors import OutputError
from vlmbatch.images.loading.child import ChildProcess, WorkerLostError
from vlmbatch.images.loading.process import crashed, timed_out
from vlmbatch.images.loading.protocol import (
    MalformedReplyError,
    check_no_error,
    receive_reply,
    request_of,
    send,
    well_formed,
)
from vlmbatch.types import ImageRef

_START_SECONDS = 60.0
_TIMEOUT_SECONDS = 60.0


class PageCounter:
    """Starts its process when the first document comes. Not thread-safe."""

    def __init__(self, limits: ImageLimits, timeout_s: float = _TIMEOUT_SECONDS) -> None:
        self._limits = limits
        self._timeout_s = timeout_s
        self._process: _CountingProcess | None = None

    def count(self, path: str) -> int:
        """The pages of the document at ``path``.

        Raises:
            RowError: it cannot be read, or crashes or hangs who reads it.
            OutputError: the process cannot be started.
        """
        if self._process is None or not self._process.alive:
            self._process = None
            try:
                self._process = _CountingProcess(self._limits)
                self._process.wait_ready()
            except WorkerLostError as error:
                raise OutputError(
                    f"the process that counts pages of PDFs cannot be started: {error}"
                ) from error
        return self._process.count(ImageRef(path), self._timeout_s)

    def close(self) -> None:
        if self._process is not None and self._process.alive:
            self._process.close()


class _CountingProcess(ChildProcess):
    def __init__(self, limits: ImageLimits) -> None:
        settings = pickle.dumps(limits)
        super().__init__("vlmbatch.images.loading.pdf_worker", settings, 1, _START_SECONDS)

    def count(self, ref: ImageRef, timeout_s: float) -> int:
        started = time.monotonic()
        self._connection.settimeout(timeout_s)
        try:
            send(self._connection, request_of(ref))
            reply = receive_reply(self._connection)
            check_no_error(reply)
            with well_formed():
                pages = int(reply["pages"])
            if pages < 0:
                raise MalformedReplyError
            return pages
        except TimeoutError as error:
            self.close()
            raise timed_out(ref, time.monotonic() - started, timeout_s) from error
        except (EOFError, ConnectionError) as error:
            raise crashed(ref, self._autopsy(error)) from error
