"""``vlmbatch merge``: join the parts that the tasks of a sharded run have written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vlmbatch import log
from vlmbatch.commands.command import with_options
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.local_output import checked_merged_file
from vlmbatch.commands.places import Place, check_places, output_places, report_places
from vlmbatch.commands.remote_output import local_copy, merged_destination
from vlmbatch.commands.report_files import check_report
from vlmbatch.commands.reporting import Reporting, ReportOptions
from vlmbatch.commands.urls import is_url
from vlmbatch.config import FileDestination, RemoteDestination
from vlmbatch.config.job import WorkDir
from vlmbatch.config.option import Opt

if TYPE_CHECKING:
    from vlmbatch.stats import RunStats

_PANEL = "Input and output"


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """Which parts to join, and where to."""

    folder: Annotated[
        str,
        Opt(
            "FOLDER",
            "The folder that the tasks of `vlmbatch run --shard I/N` wrote to.",
            flag="--folder",
            positional=True,
            filled=True,
        ),
    ]
    output: Annotated[
        str | None,
        Opt("FILE", "A .parquet file, or its URL in a store.", panel=_PANEL, short="-o"),
    ] = None
    work_dir: WorkDir = None
    overwrite: Annotated[bool, Opt("", "Replace the file that is there.", panel=_PANEL)] = False


@with_options
def merge(options: MergeOptions, report: ReportOptions, config_file: Path | None) -> None:
    """Join the parts of a run in FOLDER into one file, in the manifest's order.

    The file is the one that a run without --shard writes. Exits 0 when all rows
    are answered, 1 when some are errors or parts are missing, 75 while a part is
    being written, 2 when the parts are not those of one run.
    """
    output = options.output
    remote = None
    if output is not None and is_url(output):
        remote = merged_destination(options.folder, output, options.work_dir)
        local = remote.local.path
    else:
        folder = Path(options.folder)
        local = checked_merged_file(output, folder, overwrite=options.overwrite)
    check_places(
        [
            Place(f"the folder of parts {options.folder}", options.folder, is_ours=True),
            *output_places(FileDestination(local)),
            *([] if remote is None else [Place(f"output {remote}", remote.url, written=True)]),
            *report_places(summary_json=report.summary_json),
        ]
    )
    check_report("--summary-json", report.summary_json)
    reporting = Reporting(report, data_on_stdout=False)
    _merge(options.folder, remote or local, reporting, overwrite=options.overwrite)


def _merge(
    folder: str, output: Path | RemoteDestination, report: Reporting, *, overwrite: bool
) -> None:
    from vlmbatch.display.summary import print_merge_summary
    from vlmbatch.jobs.merge import merge as join
    from vlmbatch.stats import RunStats

    stats = RunStats()
    details = {"parts": folder, "output": str(output)}
    with (
        report.failures_summarised(stats, details),
        early_exits(lambda: _what_is_done(stats, output)),
        report.display(stats),
        local_copy(folder, stats) as parts,
    ):
        if isinstance(output, RemoteDestination):
            from vlmbatch.jobs.remote_run import make_and_put

            local = output.local.path
            make_and_put(
                lambda: join(parts, local, stats, overwrite=overwrite),
                *(output, stats),
                overwrite=overwrite,
            )
        else:
            join(parts, output, stats, overwrite=overwrite)
    report.finish(
        stats, details, lambda: print_merge_summary(stats, log.console(), folder, str(output))
    )


def _what_is_done(stats: RunStats, output: Path | RemoteDestination) -> str:
    if stats.finished is not None:
        return f"{output} is written"
    return "the parts are as they were; run the same command again"
