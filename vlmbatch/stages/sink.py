"""Writes answers on a thread of its own: detokenize, journal, put in manifest order, write."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from vlmbatch.durable.journal_writer import JournalWriter
from vlmbatch.durable.spill import Spill
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.output.parquet_writer import ResultWriter
from vlmbatch.output.reorder import ReorderBuffer
from vlmbatch.stages.answer import Answer, to_result
from vlmbatch.stats import RunStats
from vlmbatch.types import Result

# Answers that may wait to be written. A crash loses them, and as many rows of a group that is not
# yet journaled, and those of the step under way: about a thousand rows in all.
_DEPTH = 512
# Rows written between two answers taken, so that the engine need not wait while many that waited
# for an earlier row are written.
_ROWS_AT_ONCE = 64
_SPILL_BYTES = 2**26


class ResultSink:
    """Takes answers in any order from the engine's thread.

    ``written`` is called once for each row that has reached the writer. ``spill`` holds results
    until their turn; it belongs to the sink.
    """

    def __init__(
        self,
        writer: ResultWriter,
        tokenizer: Tokenizer,
        stats: RunStats,
        written: Callable[[], None],
        journal: JournalWriter | None = None,
        spill: Spill[Result] | None = None,
    ) -> None:
        self._writer = writer
        self._tokenizer = tokenizer
        self._stats = stats
        self._written = written
        self._journal = journal
        self._spill = spill or Spill(_SPILL_BYTES)
        self._order = ReorderBuffer(self._spill)
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
        self._spill.close()

    def _work(self) -> None:
        while (answer := self._next()) is not None:
            result = to_result(answer, self._tokenizer)
            resumed = answer.known is not None
            if self._journal is not None and not resumed:
                self._journal.append(result)
            self._order.push(result)
            self._stats.count(result, len(answer.row.images), resumed)
            self._write(islice(self._order.ready(), _ROWS_AT_ONCE))
        while self._order.is_ready and not self._stopped.is_set():
            self._write(islice(self._order.ready(), _ROWS_AT_ONCE))

    def _next(self) -> Answer | None:
        """The next answer, once it comes; None at the end."""
        while not self._stopped.is_set():
            try:
                return self._queue.get(timeout=0.0 if self._order.is_ready else 0.1)
            except queue.Empty:
                self._write(islice(self._order.ready(), _ROWS_AT_ONCE))
        return None

    def _write(self, results: Iterable[Result]) -> None:
        for result in results:
            self._writer.write(result)
            self._written()
        if self._journal is not None:
            self._journal.sync_if_due()
