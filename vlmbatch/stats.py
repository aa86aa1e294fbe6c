"""What a run has done so far: written by the run, read by the display and the summary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from vlmbatch.start_times import StartTimes
from vlmbatch.types import ErrorExample, Result, note_example

ADDED_COUNTERS = (  # of the parts of a run
    *("rows_earlier", "rows_done", "rows_resumed", "rows_begun", "images_done"),
    *("prompt_tokens", "image_tokens", "completion_tokens", "cached_tokens"),
    *("rows_retried", "rows_looping"),
    *("errors", "errors_resumed"),
)
_MAX_POINTS = 240


@dataclass(slots=True)
class Pace:
    """How far work was, now and then: twice as rarely each time there are ``_MAX_POINTS``."""

    points: list[tuple[float, int, int]] = field(default_factory=list)  # seconds, rows, tokens
    _interval: float = 0.5

    def note(self, seconds: float, rows: int, tokens: int) -> None:
        """``seconds`` after work began so many rows are done, and tokens generated."""
        if self.points and seconds - self.points[-1][0] < self._interval:
            return
        self.points.append((round(seconds, 2), rows, tokens))
        if len(self.points) >= _MAX_POINTS:
            del self.points[::2]
            self._interval *= 2


@dataclass(slots=True)
class Transfer:
    """Bytes on their way to a store or from it."""

    total: int
    done: int = 0

    def add(self, num_bytes: int) -> None:
        """Count bytes that have arrived. By one thread at a time."""
        self.done += num_bytes


@dataclass(slots=True)
class RunStats:
    """Counters of one run; a reader may see them a moment apart.

    Images and tokens are what this process has worked on; rows include those of earlier runs.
    """

    stage: str = "starting"  # what is happening now, for people
    quantization: str | None = None  # what is quantized, for people
    rows_total: int | None = None  # unknown while a stream is read
    first_row: int = 0  # where in the manifest the first of them stands
    rows_earlier: int = 0  # that an earlier run had finished when this one started
    rows_done: int = 0
    rows_resumed: int = 0  # of these, rows of the earlier run
    nothing_to_do: bool = False  # the output was complete before
    rows_begun: int = 0  # handed out to be prepared
    images_done: int = 0
    prompt_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens found in the prefix cache
    rows_retried: int = 0  # with an answer that looped and was tried again
    rows_looping: int = 0  # of these, those whose last attempt loops as well
    errors: Counter[str] = field(default_factory=Counter)
    errors_resumed: Counter[str] = field(default_factory=Counter)  # of these, the earlier run's
    error_examples: dict[str, ErrorExample] = field(
        default_factory=dict
    )  # of each code the first row's
    pace: Pace = field(default_factory=Pace)
    engines: dict[str, dict[str, int]] = field(default_factory=dict)  # of several, what each did
    start: StartTimes | None = None  # of a run in a process of its own
    nodes: dict[str, Counter[str]] = field(default_factory=dict)  # of a cluster, what each did
    transfer: Transfer | None = None  # while an output is put or fetched
    started: float = field(default_factory=time.monotonic)
    work_started: float | None = None  # when the first row was begun: loading is over
    finished: float | None = None

    def count(self, result: Result, num_images: int, resumed: bool = False) -> None:
        """Count a row that is done; ``resumed``: an earlier run did it."""
        self.rows_done += 1
        if resumed:
            self.rows_resumed += 1
        else:
            self.pace.note(self.processing_seconds(), self.num_new, self.completion_tokens)
            if self.num_new == 1:
                self.end_stage("first_answer")
        if result.error_code is not None:
            self.errors_resumed[result.error_code] += resumed  # first: see num_new_errors
            self.errors[result.error_code] += 1
            row = self.first_row + result.index
            example = ErrorExample(row, result.id, result.error_message)
            note_example(self.error_examples, result.error_code, example)
            return
        if resumed:
            return
        self.images_done += num_images
        self.prompt_tokens += result.prompt_tokens or 0
        self.image_tokens += result.image_tokens or 0
        self.completion_tokens += result.completion_tokens or 0
        self.rows_retried += result.details.get("retries", 0) > 0
        self.rows_looping += result.details.get("loops", False)

    @contextmanager
    def transferring(self, total: int) -> Iterator[Callable[[int], None]]:
        """Within, so many bytes are put or fetched: what counts those that have arrived."""
        self.transfer = Transfer(total)
        try:
            yield self.transfer.add
        finally:
            self.transfer = None

    def count_earlier(
        self, num_rows: int, errors: Mapping[str, int], examples: Mapping[str, ErrorExample]
    ) -> None:
        """Count the rows of an output that an earlier run has completed."""
        self.nothing_to_do = True
        self.rows_earlier = self.rows_done = self.rows_resumed = num_rows
        self.errors, self.errors_resumed = Counter(errors), Counter(errors)
        self.error_examples = dict(examples)

    def end_stage(self, name: str) -> None:
        """A stage of the start is over, where it is timed."""
        if self.start is not None:
            self.start.end(name)

    def copy(self) -> RunStats:
        """The counters as they are now, also while another thread counts."""
        return replace(
            self,
            errors=Counter(dict(self.errors)),
            errors_resumed=Counter(dict(self.errors_resumed)),
            error_examples=dict(self.error_examples),
        )

    def add(self, part: RunStats) -> None:
        """Count in the rows, images, tokens and errors of a part of this run."""
        for name in ADDED_COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(part, name))
        for code, example in part.error_examples.items():
            note_example(self.error_examples, code, example)
        self.quantization = self.quantization or part.quantization

    @property
    def num_errors(self) -> int:
        return self.errors.total()

    @property
    def num_new(self) -> int:
        """Rows done by this process."""
        return self.rows_done - self.rows_resumed

    @property
    def num_new_errors(self) -> int:
        """Rows of this process that failed; on another thread for a moment one too few."""
        return self.errors.total() - self.errors_resumed.total()

    @property
    def rows_finished(self) -> int:
        """Rows that need no more work: also those of the earlier run that have yet to pass."""
        return self.rows_done + max(0, self.rows_earlier - self.rows_resumed)

    def elapsed(self) -> float:
        """Seconds of wall time since the run began."""
        return (self.finished or time.monotonic()) - self.started

    def processing_seconds(self) -> float:
        """Seconds since work on the first row began, loading excluded: the base of all rates."""
        if self.work_started is None:
            return 0.0
        return (self.finished or time.monotonic()) - self.work_started

    def finish(self) -> None:
        self.stage = "done"
        self.finished = time.monotonic()

    def summary(self) -> dict[str, Any]:
        """The figures of ``--summary-json``; rates are per second of processing."""
        seconds = self.processing_seconds()
        rate = 1 / seconds if seconds else 0.0
        shares = {"engines": self.engines, "nodes": self.nodes}
        retries = {"retried": self.rows_retried, "looping": self.rows_looping}
        return {
            "rows": self.rows_done,
            "rows_total": self.rows_total,
            "rows_finished": self.rows_finished,
            "ok": self.rows_done - self.num_errors,
            "errors": self.num_errors,
            "resumed": self.rows_resumed,
            "errors_by_code": dict(self.errors.most_common()),
            "images": self.images_done,
            "prompt_tokens": self.prompt_tokens,
            "image_tokens": self.image_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
            "seconds": round(self.elapsed(), 3),
            "processing_seconds": round(seconds, 3),
            "rows_per_second": round((self.rows_done - self.rows_resumed) * rate, 2),
            "images_per_second": round(self.images_done * rate, 2),
            "completion_tokens_per_second": round(self.completion_tokens * rate, 2),
            **(retries if self.rows_retried else {}),
            **{name: share for name, share in shares.items() if share},
            **({} if self.quantization is None else {"quantization": self.quantization}),
            **({} if self.start is None else {"start": self.start.figures()}),
        }
