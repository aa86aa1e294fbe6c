"""``vlmbatch validate``: find the rows that a run could not answer, without a GPU or weights."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Annotated

from vlmbatch import log
from vlmbatch.commands.command import with_options, without
from vlmbatch.commands.contradictions import check_stdout_use
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.places import check_places, report_places, session_places
from vlmbatch.commands.report_files import check_report
from vlmbatch.commands.reporting import ERRORS, Reporting, ReportOptions
from vlmbatch.commands.row_errors import RowErrors, local_errors
from vlmbatch.config import ManifestConfig, SessionConfig
from vlmbatch.config.option import Opt

_WHOLE_IMAGES = Opt(
    "",
    "Read each image whole, not only its header: slower, finds truncated files.",
    panel="Images",
)
# What answers rows plays no part.
_TO_LOOK = without(
    *("dtype", "quantize", "device", "attention_backend", "max_num_seqs", "max_batched_tokens"),
    *("kv_cache_tokens", "kv_cache_dtype", "no_prefix_caching", "host_memory"),
)


@with_options
def validate(
    manifest: Annotated[ManifestConfig, without("parse_json")],
    session: Annotated[SessionConfig, _TO_LOOK],
    report: ReportOptions,
    config_file: Path | None,
    decode_images: Annotated[bool, _WHOLE_IMAGES] = False,
    errors: Annotated[str | None, ERRORS] = None,
) -> None:
    """Check every row of MANIFEST as `run` would, without a GPU, weights or torch.

    Exits 0 when all rows can be answered, 1 when some cannot, 2 when the job
    cannot be run as given.
    """
    check_places(
        [
            *report_places(errors=errors, summary_json=report.summary_json),
            *session_places(session, manifest, config_file),
        ],
        manifest.source,
    )
    check_report("--errors", errors)
    check_report("--summary-json", report.summary_json)
    check_stdout_use(report.summary_json, data_on_stdout=errors == "-")
    reporting = Reporting(report, data_on_stdout=errors == "-")
    _validate(session, manifest, reporting, errors, decode_images=decode_images)


def _validate(
    session: SessionConfig,
    manifest: ManifestConfig,
    report: Reporting,
    errors: str | None,
    *,
    decode_images: bool,
) -> None:
    from vlmbatch.jobs.validate import validate as check_rows
    from vlmbatch.stats import RunStats

    stats = RunStats()
    details = {"model": session.model, "manifest": manifest.source}
    with (
        report.failures_summarised(stats, details),
        early_exits(lambda: f"{stats.rows_done:,} rows were checked"),
        report.display(stats),
        local_errors(errors, stats) as file,
        RowErrors(stats, file) as found,
        closing(check_rows(session, manifest, stats, decode_images=decode_images)) as rows,
    ):
        for row, error in rows:
            stats.work_started = stats.work_started or time.monotonic()
            stats.rows_done += 1
            if error is None:
                stats.images_done += len(row.images)
            else:
                found.add(row, error)
        stats.finished = time.monotonic()
    from vlmbatch.display.summary import print_validation_summary

    report.finish(
        stats, details, lambda: print_validation_summary(stats, found.examples, log.console())
    )
