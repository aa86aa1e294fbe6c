"""What the commands that work on rows print, and the status that they end with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmbatch import log
from vlmbatch.commands.exits import early_exits, status_of
from vlmbatch.config.option import Opt
from vlmbatch.errors import OutputError, VlmbatchError
from vlmbatch.remote.errors import RemoteError
from vlmbatch.session.signals import signals_held

if TYPE_CHECKING:
    from vlmbatch.display.progress import RunDisplay
    from vlmbatch.stats import RunStats


_report = partial(Opt, panel="Reporting")
ERRORS = _report("FILE", "Write each error as a JSON line, also to a URL; - is stdout.")


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What a command prints, and how it ends."""

    quiet: Annotated[bool, _report("", "Print nothing but errors.", short="-q")] = False
    verbose: Annotated[
        int,
        _report(
            "", "Print more; -vv: also of libraries, and all tracebacks.", short="-v", counts=True
        ),
    ] = 0
    no_progress: Annotated[bool, _report("", "No live display, no progress lines.")] = False
    log_format: Annotated[
        log.LogFormat, _report("NAME", "Format of standard error: text or json.")
    ] = "text"
    summary_json: Annotated[
        str | None,
        _report("FILE", "Write the final figures as JSON, also to a URL; - is standard output."),
    ] = None
    exit_zero: Annotated[bool, _report("", "Exit 0 even when some rows are errors.")] = False

    def configure_log(self) -> None:
        """Have standard error show what these options ask for."""
        log.configure(verbose=self.verbose, quiet=self.quiet, log_format=self.log_format)


@dataclass(frozen=True, slots=True)
class Reporting:
    """What a command that works on rows prints, and the status that it ends with.

    ``data_on_stdout``: whether standard output carries rows, so that nothing else may.
    """

    options: ReportOptions
    data_on_stdout: bool

    def display(self, stats: RunStats) -> RunDisplay:
        from vlmbatch.display.progress import RunDisplay, display_mode

        mode = display_mode(
            log.console(),
            progress=not self.options.no_progress,
            quiet=self.options.quiet,
            log_format=self.options.log_format,
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
        from vlmbatch.display.summary import write_json

        if stopped is not None:
            status = stopped.exit_status
        else:
            status = 1 if stats.num_errors and not self.options.exit_zero else 0
        message = None if stopped is None else str(stopped)
        figures = self._figures(stats, details, status, message)
        with ExitStack() as last_line:
            with early_exits(
                lambda: "the work itself is done" if stopped is None else str(stopped)
            ):
                if self.options.summary_json is not None:
                    write_json(figures, self.options.summary_json)
                if self.options.log_format == "json":
                    message = "finished" if stopped is None else "stopped"
                    log.logger.info(message, extra={"data": figures})
                elif not self.options.quiet:
                    print_summary()
                sys.stdout.flush()
                # One line says what stopped the work, also where another signal comes just now.
                last_line.enter_context(signals_held())
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
        from vlmbatch.display.summary import write_json

        if self.options.summary_json is None:
            return
        try:
            write_json(figures, self.options.summary_json)
        except (
            OutputError,
            RemoteError,
            BrokenPipeError,
        ) as failure:  # second to the failure that led here
            log.logger.error("%s", failure)

    def _figures(
        self,
        stats: RunStats,
        details: Mapping[str, Any],
        status: int,
        error: str | None,
    ) -> dict[str, Any]:
        return {**stats.summary(), **details, "exit_status": status, "error": error}
