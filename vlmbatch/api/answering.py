"""One call: rows through the engine, and their answers handed out one by one."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial

from vlmbatch.api.outputs import RequestOutput, to_output
from vlmbatch.errors import RowError
from vlmbatch.images.loading.loader import ImageLoader
from vlmbatch.models.processor import Processor
from vlmbatch.replicas.replica import Replica
from vlmbatch.session.host_memory import HostMemory
from vlmbatch.stages.answer import Answer
from vlmbatch.stages.answer_loop import AnswerLoop
from vlmbatch.stages.feed import RowFeed
from vlmbatch.stages.prepare import prepare
from vlmbatch.stages.stopping import StopRequest
from vlmbatch.stats import RunStats
from vlmbatch.types import Row

_DEPTH = 128  # rows that are prepared ahead of the engine
_WINDOW = 4096  # rows that are read but not yet handed out: what may wait for a slow one


def answer_rows(
    rows: Iterator[Row],
    replica: Replica,
    processor: Processor,
    loader: ImageLoader,
    threads: int,
    memory: HostMemory,
    *,
    in_order: bool,
    strict: bool,
) -> Generator[RequestOutput]:
    """Answers of ``rows``, which are read and prepared on other threads, a bounded number ahead.

    ``replica`` works while an answer is asked for. When the caller loses interest, or anything is
    raised, it gives up the rows under way.

    Raises:
        RowError: with ``strict``, the first error that comes.
    """
    feed = RowFeed(
        rows,
        partial(prepare, processor=processor, loader=loader, known=lambda row: None),
        threads=threads,
        depth=_DEPTH,
        window=_WINDOW,
        max_bytes=memory.encoded,
        image_bytes=processor.largest_grid.num_bytes,
        max_pixel_bytes=memory.pixels,
    )
    finished = _Answers(in_order, strict)
    loop = AnswerLoop(feed, replica, finished, RunStats(), StopRequest())
    try:
        going = True
        while going:
            going = loop.advance()
            for answer in finished.take():
                feed.release()
                yield to_output(answer, processor.tokenizer)
    finally:
        feed.close()
        if replica.num_unfinished:
            replica.reset()


class _Answers:
    """Answers that wait to be handed out, as they come or in the order of the requests.

    ``strict``: the first error that comes is raised.
    """

    def __init__(self, in_order: bool, strict: bool) -> None:
        self._in_order = in_order
        self._strict = strict
        self._next_index = 0
        self._held: dict[int, Answer] = {}

    def put(self, answer: Answer, /) -> None:
        index, error = answer.row.index, answer.error
        if self._strict and error is not None:
            raise RowError(error.code, f"request {index}: {error.message}")
        self._held[index] = answer

    def check(self) -> None:
        pass

    def take(self) -> Iterator[Answer]:
        """Those that can leave."""
        while self._held:
            index = self._next_index if self._in_order else next(iter(self._held))
            if index not in self._held:
                return
            self._next_index += 1
            yield self._held.pop(index)
