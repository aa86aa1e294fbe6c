"""Writes answers on a thread of its own: detokenize, journal, put in manifest order, write."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from vlmbatch.answer import Answer, to_result
from vlmbatch.data.journal_writer import JournalWriter
from vlmbatch.data.reorder import ReorderBuffer
from vlmbatch.data.writer import ResultWriter
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.stats import RunStats

# Answers that may wait to be written. A crash loses them, and as many rows of a group that is not
# yet journaled, and those of the step under way: about a thousand rows in all.
_DEPTH = 512


class ResultSink:
    """Takes answers in any order from the engine's thread.

    ``written`` is called once for each row that has reached the writer.
    """

    def __init__(
        self,
        writer: ResultWriter,
        tokenizer: Tokenizer,
        stats: RunStats,
        written: Callable[[], None],
        journal: JournalWriter | None = None,
    ) -> None:
        self._writer = writer
        self._tokenizer = tokenizer
        self._stats = stats
        self._written = written
        self._journal = journal
        self._queue: queue.Queue[Answer | None] = queue.Queue(_DEPTH)
        self._stopped = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._work_done = self._thread.submit(self._work)

    def put(self, answer: Answer | None) -> None:
        """Hand an answer over. Raises what writing an earlier one raised."""
        while True:
            self.check()
            try:
                return self._queue.put(answer, timeout=1.0)
            except queue.Full:
                continue

    def check(self) -> None:
        """Raise what writing raised, if it has ended so."""
        if self._work_done.done():
            self._work_done.result()

    def flush(self) -> None:
        """Journal and write all that was handed over; nothing more may be.

        Raises:
            OutputError: journal or output could not be written.
        """
        self.put(None)
        self._work_done.result()

    def close(self) -> None:
        """End the thread, whether or not all was written."""
        self._stopped.set()
        self._thread.shutdown()

    def _work(self) -> None:
        order = ReorderBuffer()
        waiting_resumed: set[int] = set()
        while (answer := self._next()) is not None:
            result = to_result(answer, self._tokenizer)
            resumed = answer.known is not None
            if self._journal is not None and not resumed:
                self._journal.append(result)
            if resumed:
                waiting_resumed.add(result.index)
            for ready in order.push(result):
                self._writer.write(ready)
                self._written()
                if ready.index in waiting_resumed:
                    waiting_resumed.discard(ready.index)
                else:
                    self._stats.rows_judged += 1
                    self._stats.errors_judged += ready.error_code is not None
            self._stats.count(result, len(answer.row.images), resumed)

    def _next(self) -> Answer | None:
        while not self._stopped.is_set():
            try:
                return self._queue.get(timeout=0.1)
            except queue.Empty:
                if self._journal is not None:
                    self._journal.sync_if_due()
        return None
