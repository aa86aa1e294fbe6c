"""``vlmbatch run``: answer every row of a manifest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vlmbatch import log
from vlmbatch.commands.command import with_options
from vlmbatch.commands.contradictions import (
    check_answers,
    check_cluster_options,
    check_resume_options,
    check_sample,
    check_stdout_use,
)
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.places import (
    Place,
    check_places,
    output_places,
    report_places,
    session_places,
    text_places,
)
from vlmbatch.commands.remote_output import chosen_destination, text_destination
from vlmbatch.commands.report_files import check_report
from vlmbatch.commands.reporting import Reporting, ReportOptions
from vlmbatch.config import (
    JobConfig,
    ManifestConfig,
    OutputOptions,
    RemoteDestination,
    RunPolicy,
    SamplingParams,
    SessionConfig,
    StdoutDestination,
)

if TYPE_CHECKING:
    from vlmbatch.stats import RunStats


@with_options
def run(
    output: OutputOptions,
    manifest: ManifestConfig,
    policy: RunPolicy,
    session: SessionConfig,
    sampling: SamplingParams,
    report: ReportOptions,
    config_file: Path | None,
) -> None:
    """Answer every row of MANIFEST and write the answers in its order.

    A row that cannot be answered becomes an error row, and the run continues.
    The same command, run again, resumes a run that was stopped or killed.
    Exits 0 when all rows are answered, 1 when some are errors, 2 when the job
    cannot be run as given.
    """
    chosen = chosen_destination(output, manifest.source, overwrite=policy.overwrite)
    remote = chosen if isinstance(chosen, RemoteDestination) else None
    destination = chosen.local if isinstance(chosen, RemoteDestination) else chosen
    check_resume_options(destination, policy)
    check_cluster_options(output.ray, session.engine, output.write_text)
    check_answers(sampling, output.write_text)
    text_folder, text_url = text_destination(output, chosen)
    check_sample(destination, manifest, output.ray)
    check_places(
        [
            *output_places(destination),
            *([] if remote is None else [Place(f"output {remote}", remote.url, written=True)]),
            *text_places(text_folder),
            *report_places(summary_json=report.summary_json),
            *session_places(session, manifest, config_file),
        ],
        manifest.source,
    )
    check_report("--summary-json", report.summary_json)
    to_stdout = isinstance(destination, StdoutDestination)
    check_stdout_use(report.summary_json, data_on_stdout=to_stdout)
    job = JobConfig(
        *(session, manifest, destination, sampling, policy, text_folder, text_url),
        output_url=None if remote is None else remote.url,
    )
    _run(job, remote, Reporting(report, data_on_stdout=to_stdout), output.ray)


def _run(
    config: JobConfig, remote: RemoteDestination | None, report: Reporting, ray: str | None
) -> None:
    from vlmbatch.display.summary import print_run_summary
    from vlmbatch.stages.stopping import RunStoppedError
    from vlmbatch.start_times import StartTimes
    from vlmbatch.stats import RunStats

    stats = RunStats(start=StartTimes.of_process() if ray is None else None)
    output = str(config.destination if remote is None else remote)
    details = {"model": config.session.model, "output": output}
    stopped = None
    if config.manifest.source == "-" and sys.stdin is not None and sys.stdin.isatty():
        log.logger.info("reading rows from the terminal: end them with Ctrl-D")
    with (
        report.failures_summarised(stats, details),
        early_exits(lambda: what_is_done(config, stats)),
    ):
        try:
            with report.display(stats):
                _answer_all(config, remote, stats, ray)
        except RunStoppedError as error:
            done = what_is_done(config, stats)
            stopped = RunStoppedError(f"{error}. {done[:1].upper()}{done[1:]}", error.exit_status)
    if stats.start is not None:
        log.logger.debug("%s", stats.start)
    report.finish(
        stats,
        details,
        lambda: print_run_summary(
            stats,
            log.console(),
            output if stopped is None or ray is not None else str(config.destination),
            stopped=stopped is not None,
            in_parts=ray is not None,
        ),
        stopped,
    )


def _answer_all(
    config: JobConfig, remote: RemoteDestination | None, stats: RunStats, ray: str | None
) -> None:
    """The job, on this machine or on a cluster."""
    if ray is not None:
        from vlmbatch.ray.run import run as answer_on_cluster

        answer_on_cluster(config, remote, ray, stats)
    elif remote is not None:
        from vlmbatch.jobs.remote_run import run_remote

        run_remote(config, remote, stats)
    else:
        from vlmbatch.jobs.run import run as answer_here

        answer_here(config, stats)


def what_is_done(config: JobConfig, stats: RunStats) -> str:
    """What is kept of a run that has ended early, and how to resume it."""
    total = "" if stats.rows_total is None else f" of {stats.rows_total:,}"
    finished = stats.rows_finished
    done = f"{finished:,}{total} rows are done" if finished else "no row was answered"
    if isinstance(config.destination, StdoutDestination):
        return f"{done}; standard output keeps nothing to resume from"
    without = " without --overwrite" if config.policy.overwrite and finished else ""
    return f"{done}; run the same command again{without} to resume"
