"""What the commands that work on rows print, and the status that they end with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from vlmbatch import log
from vlmbatch.commands.exits import early_exits

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
        self, stats: RunStats, details: Mapping[str, Any], print_summary: Callable[[], None]
    ) -> None:
        """Print the summary, write it as JSON where asked to, and end with 1 for error rows."""
        from vlmbatch.summary import write_json

        status = 1 if stats.num_errors and not self.exit_zero else 0
        figures = {**stats.summary(), **details, "exit_status": status}
        with early_exits(lambda: "the work itself is done"):
            if self.summary_json is not None:
                write_json(figures, self.summary_json)
            if self.log_format == "json":
                log.logger.info("finished", extra={"data": figures})
            elif not self.quiet:
                print_summary()
            sys.stdout.flush()
        raise typer.Exit(status)
