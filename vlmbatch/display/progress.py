"""What a person sees while rows are worked on: a live display, or a log line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vlmbatch.log import LogFormat, logger, printable
from vlmbatch.session.signals import signals_held
from vlmbatch.stats import RunStats

Mode = Literal["live", "lines", "off"]
REFRESH_PER_SECOND = 8
SECONDS_PER_LINE = 10.0
WINDOW_SECONDS = 15.0


@dataclass(slots=True)
class Rates:
    """Rows, images and generated tokens a second over the last ``WINDOW_SECONDS``."""

    rows: float = 0.0
    images: float = 0.0
    tokens: float = 0.0
    _samples: deque[tuple[float, int, int, int]] = field(default_factory=deque)

    def update(self, stats: RunStats, now: float) -> None:
        """Take a sample of ``stats`` at ``now``, in seconds of a monotonic clock.

        Nothing counts before the first row reaches the engine: loading is not a slow row. Nor do
        rows of an earlier run, which pass at a speed that tells nothing of the rest.
        """
        if stats.work_started is None:
            return
        new_rows = stats.rows_done - stats.rows_resumed
        sample = (now, new_rows, stats.images_done, stats.completion_tokens)
        self._samples.append(sample)
        while len(self._samples) > 2 and now - self._samples[1][0] >= WINDOW_SECONDS:
            self._samples.popleft()
        then, *before = self._samples[0]
        if now > then:
            self.rows, self.images, self.tokens = (
                (new - old) / (now - then) for new, old in zip(sample[1:], before, strict=True)
            )


def display_mode(
    console: Console, *, progress: bool, quiet: bool, log_format: LogFormat, data_on_stdout: bool
) -> Mode:
    """Live only where a person watches a terminal that no data is written to."""
    if quiet or not progress:
        return "off"
    is_screen = console.is_terminal and not console.is_dumb_terminal
    if log_format == "json" or not is_screen or (data_on_stdout and sys.stdout.isatty()):
        return "lines"
    return "live"


def duration(seconds: float) -> str:
    """``h:mm:ss``, without the hours when there are none."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class RunDisplay:
    """Shows ``stats`` while the block runs; reads them from its own thread, changes nothing.

    ``mode`` "live" redraws a few lines on ``console``, "lines" logs one every ten seconds.
    """

    def __init__(self, stats: RunStats, console: Console, mode: Mode) -> None:
        self._stats = stats
        self._rates = Rates()
        self._mode = mode
        self._live = Live(
            console=console,
            get_renderable=self.render,
            refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
            redirect_stdout=False,
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._log_lines, name="progress", daemon=True)

    def __enter__(self) -> Self:
        try:
            with signals_held():
                if self._mode == "live":
                    self._live.start(refresh=True)
                elif self._mode == "lines":
                    self._thread.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        with signals_held():
            self._live.stop()
            self._stop.set()
            if self._thread.is_alive():
                self._thread.join()

    def render(self) -> RenderableType:
        """Stage and bar, rates, errors: each on its line, cut off rather than wrapped."""
        stats = self._stats
        self._rates.update(stats, time.monotonic())
        done, total = stats.rows_finished, stats.rows_total
        if (transfer := stats.transfer) is not None:
            done, total = transfer.done, transfer.total
        head = Table.grid(padding=(0, 1))
        head.add_column(no_wrap=True, overflow="ellipsis")
        head.add_column(ratio=1, min_width=8)
        head.add_column(no_wrap=True, justify="right")
        head.expand = True
        head.add_row(
            Text(stats.stage, style="bold"),
            ProgressBar(total, done, pulse=total is None, complete_style="cyan"),
            Text(self._count()),
        )
        lines: list[RenderableType] = [head]
        figures = Text(self._figures(), style="cyan", no_wrap=True, overflow="ellipsis")
        lines.append(figures)
        if stats.num_errors:
            kinds = ", ".join(f"{code} {count:,}" for code, count in stats.errors.most_common())
            plural = "s" if stats.num_errors > 1 else ""
            lines.append(
                Text(
                    f"{stats.num_errors:,} error{plural}: {printable(kinds)}",
                    style="red",
                    no_wrap=True,
                    overflow="ellipsis",
                )
            )
        return Group(*lines)

    def _count(self) -> str:
        if (transfer := self._stats.transfer) is not None:
            share = transfer.done / transfer.total if transfer.total else 1.0
            return f"{transfer.done / 1e6:,.1f}/{transfer.total / 1e6:,.1f} MB {share:.0%}"
        done, total = self._stats.rows_finished, self._stats.rows_total
        if total is None:
            return f"{done:,} rows"
        return f"{done:,}/{total:,} {done / total if total else 1.0:.0%}"

    def _figures(self) -> str:
        stats, rates = self._stats, self._rates
        parts = [duration(stats.elapsed())]
        left = (stats.rows_total or 0) - stats.rows_finished
        if left > 0 and rates.rows > 0:
            parts.append(f"ETA {duration(left / rates.rows)}")
        if stats.work_started is not None:
            parts.append(f"{rates.rows:,.1f} rows/s")
        if stats.completion_tokens:
            parts.append(f"{rates.tokens:,.0f} tokens/s")
        if stats.images_done:
            parts.append(f"{rates.images:,.1f} images/s")
        if stats.rows_earlier:
            parts.append(f"{stats.rows_earlier:,} done before")
        return " · ".join(parts)

    def _log_lines(self) -> None:
        while not self._stop.wait(SECONDS_PER_LINE):
            stats = self._stats
            self._rates.update(stats, time.monotonic())
            logger.info(
                "%s: %s, %s, errors: %d",
                stats.stage,
                self._count(),
                self._figures().replace(" · ", ", "),
                stats.num_errors,
                extra={
                    "data": {
                        "stage": stats.stage,
                        "rows_done": stats.rows_finished,
                        "rows_total": stats.rows_total,
                        "rows_per_second": round(self._rates.rows, 2),
                        "errors": stats.num_errors,
                    }
                },
            )
