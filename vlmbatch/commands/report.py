"""``vlmbatch report``: a page that shows answers beside their prompts and images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vlmbatch import log
from vlmbatch.commands.command import with_options, without
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.places import Place, check_places
from vlmbatch.commands.remote_output import local_copy, local_file
from vlmbatch.commands.report_files import checked_page
from vlmbatch.commands.reporting import Reporting, ReportOptions
from vlmbatch.config.option import Opt, check_bounds

PANEL = "Input and output"
WITHOUT_FIGURES = without("summary_json", "exit_zero")
_MAX_ROWS = 10_000

# Of every command that writes a page.
PageRows = Annotated[
    int, Opt("N", "Rows on the page at most.", panel=PANEL, minimum=1, maximum=_MAX_ROWS)
]
NoImages = Annotated[bool, Opt("", "Show no pictures.", panel=PANEL)]
OverwritePage = Annotated[bool, Opt("", "Replace the page that is there.", panel=PANEL)]


@dataclass(frozen=True, slots=True)
class PageOptions:
    """What a page shows, and where it goes."""

    output: Annotated[
        str,
        Opt(
            "OUTPUT",
            "The output of a run: a .parquet file, a folder of shards or of parts, or a .jsonl "
            "file of OpenAI's batch results.",
            flag="--output",
            positional=True,
            filled=True,
        ),
    ]
    page: Annotated[
        str | None,
        Opt("FILE", "An .html file, or its URL.", panel=PANEL, short="-o", flag="--page"),
    ] = None
    rows: PageRows = 500
    manifest: Annotated[
        str | None,
        Opt(
            "MANIFEST",
            "Where prompts and images are; absent: in the manifest that the run has read.",
            panel=PANEL,
            filled=True,
        ),
    ] = None
    no_images: NoImages = False
    overwrite: OverwritePage = False

    def __post_init__(self) -> None:
        check_bounds(self)


@with_options
def report(
    options: PageOptions,
    reporting: Annotated[ReportOptions, WITHOUT_FIGURES],
) -> None:
    """Write a page that shows the answers of OUTPUT beside their prompts and images.

    One file that needs no network, with search, filters, figures of all rows and
    examples of errors. Of a large output it shows rows spread over all of it.
    """
    page = checked_page(options.page, options.output, overwrite=options.overwrite)
    check_places(
        [
            Place(f"output {options.output}", options.output, is_ours=True),
            Place(f"page {page}", str(page), written=True),
            *([] if options.manifest is None else [Place("the manifest", options.manifest)]),
        ]
    )
    from vlmbatch.jobs.report import ReportConfig
    from vlmbatch.jobs.report import report as write
    from vlmbatch.stats import RunStats

    stats = RunStats()
    config = ReportConfig(options.rows, options.manifest, not options.no_images)
    with early_exits(lambda: f"{page} is as it was"):
        with (
            Reporting(reporting, data_on_stdout=False).display(stats),
            local_copy(options.output, stats) as output,
            local_file(page, stats) as file,
        ):
            written = write(output, file, config, stats)
        if not reporting.quiet:
            log.console().print(
                f"{log.printable(str(page))}: {written.shown:,} of {written.rows:,} rows, "
                f"{written.num_bytes / 1e6:,.1f} MB",
                markup=False,
                soft_wrap=True,
            )
