"""How many pages documents have, found out in a process that a document may crash."""

from __future__ import annotations

import pickle
from typing import Any

from vlmbatch.config import ImageLimits
from vlmbatch.errors import OutputError
from vlmbatch.images.loading.child import WorkerLostError
from vlmbatch.images.loading.process import FileProcess
from vlmbatch.images.loading.protocol import MalformedReplyError, well_formed
from vlmbatch.types import ImageRef

_START_SECONDS = 60.0
_ATTEMPTS = 2
_TIMEOUT_SECONDS = 60.0


class PageCounter:
    """Starts its process when the first document comes. Not thread-safe."""

    def __init__(self, limits: ImageLimits, timeout_s: float = _TIMEOUT_SECONDS) -> None:
        self._settings = pickle.dumps(limits)
        self._timeout_s = timeout_s
        self._process: FileProcess | None = None

    def count(self, path: str) -> int:
        """The pages of the document at ``path``.

        Raises:
            RowError: it cannot be read, or crashes or hangs who reads it.
            OutputError: the process cannot be kept running.
        """
        for _ in range(_ATTEMPTS):
            try:
                if self._process is None or not self._process.alive:
                    self._process = FileProcess(
                        "vlmbatch.images.loading.pdf_worker", self._settings, 1, _START_SECONDS
                    )
                    self._process.wait_ready()
                return self._process.ask(ImageRef(path), self._timeout_s, _pages)
            except WorkerLostError as error:  # before it took the document
                self._process, loss = None, error
        raise OutputError(
            f"the process that counts pages of PDFs cannot be kept running: {loss}"
        ) from loss

    def close(self) -> None:
        if self._process is not None and self._process.alive:
            self._process.close()


def _pages(reply: dict[str, Any]) -> int:
    with well_formed():
        pages = int(reply["pages"])
    if pages < 0:
        raise MalformedReplyError
    return pages
