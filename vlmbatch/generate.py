"""The loop between the feed and the sink: keeps the engine full and hands on what it finishes."""

from __future__ import annotations

import time

from vlmbatch.answer import Answer
from vlmbatch.engine.engine import Engine, SequenceFailure
from vlmbatch.engine.sequence import Sequence
from vlmbatch.errors import RowError
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.prepare import Prepared, RowFeed
from vlmbatch.sink import ResultSink
from vlmbatch.stats import RunStats
from vlmbatch.stop_strings import StopChecker
from vlmbatch.types import FinishReason, Row

_IDLE_SECONDS = 0.5  # between looks at the sink while no row is ready


def answer_rows(
    feed: RowFeed,
    engine: Engine,
    tokenizer: Tokenizer,
    sink: ResultSink,
    stats: RunStats,
) -> None:
    """Run every row of ``feed`` through ``engine``; each reaches ``sink`` once, in any order."""
    under_way: dict[Sequence, Row] = {}
    checkers: dict[Sequence, StopChecker] = {}

    def admit(prepared: Prepared) -> None:
        row, request = prepared.row, prepared.request
        if request is None:
            sink.put(Answer(row, error=prepared.error))
            return
        try:
            sequence = engine.add(request)
        except RowError as error:
            sink.put(Answer(row, error=error))
            return
        under_way[sequence] = row
        if request.sampling.stop:
            checkers[sequence] = StopChecker(tokenizer, request.sampling.stop)
        if stats.engine_started is None:
            stats.engine_started = time.monotonic()

    while True:
        while engine.wants_requests:
            prepared = feed.poll(timeout=0.0 if engine.num_unfinished else _IDLE_SECONDS)
            if prepared is None:
                break
            admit(prepared)
        if engine.num_unfinished == 0:
            if feed.exhausted:
                return
            sink.check()
        for output in engine.step():
            sequence = output.sequence
            if isinstance(output, SequenceFailure):
                checkers.pop(sequence, None)
                sink.put(Answer(under_way.pop(sequence), error=output.error))
                continue
            checker = checkers.get(sequence)
            if checker is not None and checker.push(output.token_id):
                engine.finish(sequence, "stop")
                # A stop string beats the length limit that its last token may have reached.
                reason: FinishReason | None = "stop"
            else:
                reason = output.finish_reason
            if reason is None:
                continue
            checkers.pop(sequence, None)
            stats.cached_tokens += sequence.num_cached_tokens or 0
            request = sequence.request
            sink.put(
                Answer(
                    under_way.pop(sequence),
                    tuple(sequence.output_token_ids),
                    reason,
                    prompt_tokens=sequence.num_prompt_tokens,
                    image_tokens=request.num_image_tokens,
                    stop=request.sampling.stop,
                )
            )
