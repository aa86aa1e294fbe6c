"""The thread that generates batches, one after another. No torch.

Answers leave when their rows end, and signals and requests given up need not wait for the batch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from vlmbatch.errors import ErrorCode, RowError, VlmbatchError
from vlmbatch.hf.failures import BatchFailedError
from vlmbatch.hf.row import RowUnderWay
from vlmbatch.log import logger
from vlmbatch.replicas.replica import Event, RowFailure
from vlmbatch.types import TokenLogprob

_MAX_FAILURES = 64  # rows given up one after another: then it is not the rows


class Generator(Protocol):
    """Answers a batch; see ``BatchGenerator``."""

    def answer(
        self,
        rows: Sequence[RowUnderWay],
        on_token: Callable[[RowUnderWay, int, TokenLogprob | None], None],
        given_up: Callable[[], bool],
    ) -> None: ...


class BatchThread:
    """Has ``generator`` answer batches; it begins with the first, and is to be closed.

    ``max_rows``: that a batch should have, fewer once one ran out of memory. ``is_busy``: a batch
    has begun, and ``next_news`` has not told of its end. ``on_start`` is called on the thread
    before the first.
    """

    def __init__(self, generator: Generator, max_rows: int, on_start: Callable[[], None]) -> None:
        self.max_rows = max_rows
        self.is_busy = False
        self._generator = generator
        self._on_start = on_start
        self._batches: queue.SimpleQueue[list[RowUnderWay] | None] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[tuple[RowUnderWay, Event] | VlmbatchError | None] = (
            queue.SimpleQueue()
        )
        self._give_up = threading.Event()
        self._failures = 0  # rows given up since one went well; belongs to the thread
        self._thread: threading.Thread | None = None

    def begin(self, batch: list[RowUnderWay]) -> None:
        """Answer a batch; the one before has ended."""
        assert not self.is_busy
        self.is_busy = True
        if self._thread is None:
            # A daemon: a program that forgets to close its model shall end all the same.
            self._thread = threading.Thread(target=self._work, name="transformers", daemon=True)
            self._thread.start()
        self._batches.put(batch)

    def next_news(self, timeout: float) -> tuple[RowUnderWay, Event] | None:
        """What has come of a row; None when the batch has ended.

        Raises:
            queue.Empty: nothing has come in ``timeout`` seconds.
            VlmbatchError: the batch failed, and not on its rows.
        """
        news = self._news.get(timeout > 0, timeout)
        if isinstance(news, tuple):
            return news
        self.is_busy = False
        if news is not None:
            raise news
        return None

    def give_up(self) -> None:
        """End the batch at its next token, and forget what has come of it."""
        self._give_up.set()
        while self.is_busy:
            self.is_busy = isinstance(self._news.get(), tuple)
        while not self._news.empty():
            self._news.get()
        self._give_up.clear()

    def close(self) -> None:
        """Give up the batch and end the thread. It may be called again."""
        self.give_up()
        if self._thread is not None:
            self._batches.put(None)
            self._thread.join()
            self._thread = None

    # On the thread.

    def _work(self) -> None:
        self._on_start()
        while (batch := self._batches.get()) is not None:
            try:
                self._answer(batch)
                self._news.put(None)
            except VlmbatchError as error:
                self._news.put(error)
            except BaseException as error:  # noqa: BLE001  raised again by next_news
                failure = VlmbatchError(f"the model failed: {type(error).__name__}: {error}")
                failure.__cause__ = error
                self._news.put(failure)

    def _answer(self, batch: list[RowUnderWay]) -> None:
        """Answer a batch; one that fails is divided, and a row that fails alone is an error.

        After a batch that ran out of memory, batches have as many rows as its largest part that did
        not; unless a row failed alone, which says nothing of how many others fit.
        """
        parts = [batch]
        largest, out_of_memory, failed_alone = 0, False, False
        while parts and not self._give_up.is_set():
            rows = [row for row in parts.pop() if not row.ended]
            if not rows:
                continue
            try:
                self._generator.answer(rows, self._on_token, self._give_up.is_set)
                self._failures = 0
                largest = max(largest, len(rows))
            except BatchFailedError as error:
                out_of_memory |= error.out_of_memory
                failed_alone |= len(rows) == 1
                parts += self._divided(rows, error)
        if out_of_memory and largest and not failed_alone:
            self.max_rows = min(self.max_rows, largest)

    def _divided(self, rows: list[RowUnderWay], error: BatchFailedError) -> list[list[RowUnderWay]]:
        logger.debug("a batch of %d rows failed: %s", len(rows), error)
        left = [row for row in rows if not row.ended]
        if len(rows) > 1:
            for row in left:
                row.restart()
            middle = len(left) // 2  # nothing before it, where one is left of several
            return [left[middle:], left[:middle]]
        for row in left:
            self._failures += 1
            if self._failures == _MAX_FAILURES:
                raise VlmbatchError(
                    f"the model failed on {_MAX_FAILURES} rows one after another, the last with: "
                    f"{error}"
                )
            row.ended = True
            failure = RowError(ErrorCode.ENGINE_ERROR, f"the engine failed on this row: {error}")
            self._news.put((row, RowFailure(row.request.index, failure)))
        return []

    def _on_token(
        self, row: RowUnderWay, token_id: int, logprob: TokenLogprob | None = None
    ) -> None:
        event = row.push(token_id, logprob)
        if event is not None:
            self._news.put((row, event))
