"""Rows become engine requests on worker threads, a bounded number ahead of the engine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from vlmbatch.config import ImageLimits
from vlmbatch.data.images import decode_image
from vlmbatch.errors import RowError
from vlmbatch.models.processor import LlavaProcessor
from vlmbatch.types import Request, Row


@dataclass(frozen=True, slots=True)
class Prepared:
    """A row with its request, or with the error that stands for it."""

    row: Row
    request: Request | None = None
    error: RowError | None = None


def prepare(row: Row, processor: LlavaProcessor, limits: ImageLimits) -> Prepared:
    """Tokenize the prompt, decode and resize the images. Errors of the row become its result."""
    if row.error is not None:
        return Prepared(row, error=row.error)
    try:
        encoded = processor.encode(row)
        images = tuple(processor.process_image(decode_image(image, limits)) for image in row.images)
        return Prepared(row, request=processor.to_request(row, encoded, images))
    except RowError as error:
        return Prepared(row, error=error)


class RowFeed:
    """Reads rows on one thread, prepares them on others, and hands them out in order.

    At most ``depth`` prepared rows wait. ``window`` bounds the rows that are read but not yet
    written: a row counts until ``release`` is called for it.
    """

    def __init__(
        self,
        rows: Iterator[Row],
        prepare_row: Callable[[Row], Prepared],
        threads: int,
        depth: int,
        window: int,
    ) -> None:
        self._rows = rows
        self._prepare = prepare_row
        self._queue: queue.Queue[Future[Prepared] | None] = queue.Queue(depth)
        self._window = threading.Semaphore(window)
        self._closed = threading.Event()
        self._head: Future[Prepared] | None = None
        self.exhausted = False
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._reading = self._reader.submit(self._read)

    def poll(self, timeout: float) -> Prepared | None:
        """The next prepared row; None when none is ready within ``timeout`` seconds, or no more.

        Raises what reading the manifest raised.
        """
        if self._head is None and not self.exhausted:
            try:
                self._head = self._queue.get(timeout > 0, timeout)
            except queue.Empty:
                return None
            if self._head is None:
                self.exhausted = True
                self._reading.result()
        if self._head is None or not wait([self._head], timeout).done:
            return None
        prepared = self._head.result()
        self._head = None
        return prepared

    def release(self) -> None:
        """One more row is written: another may be read."""
        self._window.release()

    def close(self) -> None:
        """Stop reading and preparing; rows not handed out are dropped."""
        self._closed.set()
        self._window.release()
        while not self.exhausted:  # the reader may be waiting for a place in the queue
            self.exhausted = self._queue.get() is None
        self._reader.shutdown()
        self._workers.shutdown(cancel_futures=True)

    def _read(self) -> None:
        try:
            for row in self._rows:
                self._window.acquire()
                if self._closed.is_set():
                    return
                self._queue.put(self._workers.submit(self._prepare, row))
        finally:
            self._queue.put(None)
