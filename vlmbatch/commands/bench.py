"""``vlmbatch bench``: how fast this machine is, beside what it could be."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmbatch import log
from vlmbatch.bench.config import BenchConfig
from vlmbatch.bench.workloads import WORKLOADS, parse_workloads
from vlmbatch.commands.command import with_options, without
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.places import check_places, input_places, report_places
from vlmbatch.commands.report_files import check_report
from vlmbatch.commands.reporting import ReportOptions
from vlmbatch.config.option import Opt

if TYPE_CHECKING:
    from rich.console import Console

_FILE_WIDTH = 100
_WORKLOADS = Opt(
    "NAMES",
    "classify: one short answer an image; caption: one long; vqa: 8 questions an image; photos: "
    "large images; pages: scanned pages, the longest answers.",
)
_JSON = Opt("FILE", "Write all figures as JSON, also to a URL; - is standard output.")
_OF_RUNS = without("allow_bucket", "allow_domain", "image_timeout", "engine")
_QUIET = without("no_progress", "log_format", "summary_json", "exit_zero")


@with_options
def bench(
    config: Annotated[BenchConfig, _OF_RUNS],
    report: Annotated[ReportOptions, _QUIET],
    config_file: Path | None,
    workloads: Annotated[str, _WORKLOADS] = ",".join(WORKLOADS),
    json: Annotated[str | None, _JSON] = None,
) -> None:
    """Measure workloads of made-up images and prompts, by the same code as `run`.

    Without a model: LLaVA-1.5-7B with random weights on a GPU, the sample model
    on a CPU. Exits 1 when rows failed.
    """
    check_report("--json", json)
    check_places(
        [
            *report_places(json=json),
            *input_places(config=config_file, folders={"model": config.model}),
        ]
    )
    config = replace(config, workloads=parse_workloads(workloads))
    from vlmbatch.bench.bench import bench as measure
    from vlmbatch.bench.report import as_json, print_report
    from vlmbatch.display.summary import write_json

    with early_exits(lambda: "no figures are kept"):
        result = measure(config)
        if not report.quiet:  # first: a store may refuse the file
            print_report(result, log.console() if json == "-" else _stdout())
        if json is not None:
            write_json(as_json(result), json)
    raise typer.Exit(1 if result.num_errors else 0)


def _stdout() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
