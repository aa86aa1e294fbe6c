"""``vlmbatch validate``: find the rows that a run could not answer, without a GPU or weights."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self, TextIO

from vlmbatch import log
from vlmbatch.commands.checks import check_report_file, check_stdout_use
from vlmbatch.commands.command import with_options, without
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.places import check_places, report_places, session_places
from vlmbatch.commands.reporting import ERRORS, Reporting, ReportOptions
from vlmbatch.config import ManifestConfig, SessionConfig
from vlmbatch.config.option import Opt
from vlmbatch.errors import OutputError, RowError

if TYPE_CHECKING:
    from vlmbatch.types import Row

_WHOLE_IMAGES = Opt(
    "",
    "Read each image whole, not only its header: slower, finds truncated files.",
    panel="Images",
)
# What answers rows plays no part.
_TO_LOOK = without(
    *("dtype", "device", "attention_backend", "max_num_seqs", "max_batched_tokens"),
    *("kv_cache_tokens", "no_prefix_caching", "host_memory"),
)


@with_options
def validate(
    manifest: ManifestConfig,
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
    check_report_file("--errors", errors)
    check_report_file("--summary-json", report.summary_json)
    check_places(
        [
            *report_places(errors=errors, summary_json=report.summary_json),
            *session_places(session, manifest, config_file),
        ],
        manifest.source,
    )
    check_stdout_use("--summary-json", report.summary_json, data_on_stdout=errors == "-")
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
    from vlmbatch.manifest.validate import ValidationReport
    from vlmbatch.stats import RunStats

    stats = RunStats()
    found = ValidationReport()
    with (
        early_exits(lambda: f"{stats.rows_done:,} rows were checked"),
        report.display(stats),
        ErrorFile(errors) as error_file,
    ):
        for row, error in check_rows(session, manifest, stats, decode_images=decode_images):
            stats.work_started = stats.work_started or time.monotonic()
            found.add(row, error)
            stats.rows_done += 1
            if error is None:
                stats.images_done += len(row.images)
            else:
                stats.errors[error.code] += 1
                error_file.write(row, error)
        stats.finished = time.monotonic()
    from vlmbatch.display.summary import print_validation_summary

    details = {"model": session.model, "manifest": manifest.source}
    report.finish(
        stats, details, lambda: print_validation_summary(stats, found.examples, log.console())
    )


class ErrorFile:
    """The JSON lines of ``--errors``: to a file, to standard output for ``-``, nowhere for None.

    Raises:
        OutputError: the file cannot be opened or written.
    """

    def __init__(self, destination: str | None) -> None:
        self._destination = destination
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        if self._destination == "-":
            self._file = sys.stdout
        elif self._destination is not None:
            try:  # flushed by lines, so that a full disk is met in write
                self._file = Path(self._destination).open("w", buffering=1, encoding="utf-8")
            except OSError as error:
                raise self._failed(error) from error
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is None or self._file is sys.stdout:
            return
        try:
            self._file.close()
        except OSError as error:  # what a failed write left in the buffer fails once more
            raise self._failed(error) from error

    def write(self, row: Row, error: RowError) -> None:
        if self._file is None:
            return
        fields = {
            "row_index": row.index,
            "id": row.id,
            "file": row.file,
            "line": row.line,
            "error_code": error.code,
            "error_message": error.message,
        }
        try:
            self._file.write(json.dumps(fields) + "\n")
        except OSError as failure:
            raise self._failed(failure) from failure

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self._destination}: {error.strerror}")
