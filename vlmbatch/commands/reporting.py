"""What the commands that work on rows print, and the status that they end with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from vlmbatch import log
from vlmbatch.commands.exits import early_exits, status_of
from vlmbatch.errors import OutputError, VlmbatchError

if TYPE_CHECKING:
    from vlmbatch.progress import RunDisplay
    from vlmbatch.stats import RunStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """The options of the panel "Reporting", and whether standard output carries data."""

    quiet: bool
    no_progress: bool
    log_format: log.LogFormat
    summary_json: str | None
    exit_zero: bool
    data_on_stdout: bool

    def display(self, stats: RunStats) -> RunDisplay:
        from vlmbatch.progress import RunDisplay, display_mode

        mode = display_mode(
            log.console(),
            progress=not self.no_progress,
            quiet=self.quiet,
            log_format=self.log_format,
            data_on_stdout=self.data_on_stdout,
        )
        return RunDisplay(stats, log.console(), mode)

    def finish(
        self,
        stats: RunStats,
        details: Mapping[str, Any],
        print_summary: Callable[[], None],
        stopped: VlmbatchError | None = None,
    ) -> None:
        """Print the summary, write it as JSON where asked to, and end the command.

        With the exit status of ``stopped``, if that ended the work, and else with 1 for error rows.
        """
        from vlmbatch.summary import write_json

        if stopped is not None:
            status = stopped.exit_status
        else:
            status = 1 if stats.num_errors and not self.exit_zero else 0
        message = None if stopped is None else str(stopped)
        figures = self._figures(stats, details, status, message)
        with early_exits(lambda: "the work itself is done" if stopped is None else str(stopped)):
            if self.summary_json is not None:
                write_json(figures, self.summary_json)
            if self.log_format == "json":
                message = "finished" if stopped is None else "stopped"
                log.logger.info(message, extra={"data": figures})
            elif not self.quiet:
                print_summary()
            sys.stdout.flush()
        if stopped is not None:
            log.logger.error("%s", stopped)
        raise typer.Exit(status)

    @contextmanager
    def failures_summarised(self, stats: RunStats, details: Mapping[str, Any]) -> Iterator[None]:
        """Write ``--summary-json`` also when the work fails: an old one would pass for its own."""
        try:
            yield
        except BaseException as error:
            message = None if isinstance(error, typer.Exit) else str(error)
            self._summarise_failure(self._figures(stats, details, status_of(error), message))
            raise

    def _summarise_failure(self, figures: Mapping[str, Any]) -> None:
        from vlmbatch.summary import write_json

        if self.summary_json is None:
            return
        try:
            write_json(figures, self.summary_json)
        except (OutputError, BrokenPipeError) as failure:  # second to the failure that led here
            log.logger.error("%s", failure)

    def _figures(
        self,
        stats: RunStats,
        details: Mapping[str, Any],
        status: int,
        error: str | None,
    ) -> dict[str, Any]:
        return {**stats.summary(), **details, "exit_status": status, "error": error}
