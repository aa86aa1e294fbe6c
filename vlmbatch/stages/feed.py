"""Rows are read and prepared on threads, a bounded number ahead of the engine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from vlmbatch.images.size_budget import SizeBudget
from vlmbatch.stages.byte_budget import EncodedBudget
from vlmbatch.stages.grouping import RowGroups, in_groups
from vlmbatch.stages.prepare import Prepared
from vlmbatch.types import ImageRef, Row

_CLOSE_SECONDS = 1.0  # for the reader to end; it cannot while it waits for standard input


class RowFeed:
    """Reads rows on one thread, prepares them on others, and hands them out as they are ready.

    At most ``depth`` rows are in work or wait, with at most ``max_bytes`` of encoded images that
    they bring along and ``max_pixel_bytes`` of pixels (but always one row). An image that is not
    decoded yet counts as much as those before it did on average, the first ones as ``image_bytes``;
    where images turn out larger, no row is begun until there is room again. ``window`` bounds the
    rows that are read but not yet written: a row counts until ``release`` is called for it.
    ``groups`` reads ahead, and decides on the order. ``prepare_row`` may return before all is done,
    and give a future.
    """

    def __init__(
        self,
        rows: Iterator[Row],
        prepare_row: Callable[[Row], Prepared | Future[Prepared]],
        threads: int,
        depth: int,
        window: int,
        max_bytes: int = 2**28,
        *,
        image_bytes: int = 0,
        max_pixel_bytes: int = 2**28,
        groups: RowGroups | None = None,
    ) -> None:
        self._rows = rows
        self._groups = groups
        self._prepare = prepare_row
        # With the bytes of pixels that each row holds.
        self._ready: queue.SimpleQueue[tuple[Future[Prepared], int] | None] = queue.SimpleQueue()
        self._slots = threading.Semaphore(depth)
        self._window = threading.Semaphore(window)
        self._encoded = EncodedBudget(max_bytes)
        self._pixels = SizeBudget(max_pixel_bytes, image_bytes)
        self._closed = threading.Event()
        self._num_read = 0
        self._num_given = 0
        self._all_read = False
        self._failure: BaseException | None = None
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        # A daemon: it may be waiting for a line on standard input that never comes.
        self._reader = threading.Thread(target=self._read, name="reader", daemon=True)
        self._reader.start()

    def poll(self, timeout: float) -> Prepared | None:
        """The next prepared row; None when none is ready within ``timeout`` seconds, or no more.

        Whichever is ready first: a slow image holds up no other row. Raises what reading the
        manifest raised, once the rows before are handed out.
        """
        while not self.exhausted:
            try:
                ready = self._ready.get(timeout > 0, timeout)
            except queue.Empty:
                return None
            if ready is None:
                self._all_read = True
                continue
            future, pixel_bytes = ready
            self._num_given += 1
            self._slots.release()
            self._pixels.release(pixel_bytes)
            return future.result()
        if self._failure is not None:
            raise self._failure
        return None

    @property
    def num_begun(self) -> int:
        """How many rows were handed to the workers."""
        return self._num_read

    @property
    def exhausted(self) -> bool:
        """Whether every row has been handed out."""
        return self._all_read and self._num_given == self._num_read

    def release(self) -> None:
        """One more row is written: another may be read."""
        self._window.release()

    def close(self) -> None:
        """Stop reading and preparing; rows not handed out are dropped."""
        self._closed.set()
        self._window.release()
        self._slots.release()
        self._encoded.close()
        self._pixels.close()
        self._reader.join(_CLOSE_SECONDS)
        self._workers.shutdown(cancel_futures=True)

    def _read(self) -> None:
        try:
            for row in self._in_order():
                self._slots.acquire()
                self._encoded.acquire(row.images)
                reserved = self._pixels.reserve(len(row.images))
                if self._closed.is_set():
                    return
                self._num_read += 1
                self._workers.submit(self._start, row, reserved)
        except BaseException as error:  # noqa: BLE001  raised again by poll, on the main thread
            self._failure = error
        finally:
            self._ready.put(None)

    def _in_order(self) -> Iterator[Row]:
        """Rows in the order in which to prepare them. Ends early when closed."""
        if self._groups is not None:
            yield from in_groups(self._rows, self._groups, self._may_read)
            return
        for row in self._rows:
            self._window.acquire()
            yield row

    def _may_read(self, wait: bool) -> bool:
        return self._window.acquire(blocking=wait) and not self._closed.is_set()

    def _start(self, row: Row, reserved: int) -> None:
        self._pixels.begin(reserved)
        outcome: Future[Prepared] = Future()
        try:
            prepared = self._prepare(row)
            if isinstance(prepared, Future):
                outcome = prepared
            else:
                outcome.set_result(prepared)
        except BaseException as error:  # noqa: BLE001  raised again by poll, on the main thread
            outcome.set_exception(error)
        outcome.add_done_callback(partial(self._end, row.images, reserved))

    def _end(self, images: tuple[ImageRef, ...], reserved: int, outcome: Future[Prepared]) -> None:
        self._encoded.release(images)
        failed = outcome.exception() is not None
        request = None if failed else outcome.result().request
        sizes = [] if request is None else request.image_sizes
        self._pixels.settle(reserved, sizes)
        self._ready.put((outcome, sum(sizes)))
