"""``vlmbatch compare``: the rows whose answers differ between two outputs."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from vlmbatch import log
from vlmbatch.commands.command import with_options
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.places import Place, check_places
from vlmbatch.commands.remote_output import local_copy, local_file
from vlmbatch.commands.report import (
    PANEL,
    WITHOUT_FIGURES,
    NoImages,
    OverwritePage,
    PageRows,
)
from vlmbatch.commands.report_files import checked_page
from vlmbatch.commands.reporting import Reporting, ReportOptions
from vlmbatch.config.option import Opt, check_bounds

if TYPE_CHECKING:
    from vlmbatch.jobs.compare import Comparison

_SHOWN_VALUES = 12


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """Which outputs, and what to write of them."""

    left: Annotated[
        str, Opt("A", "The output of a run.", flag="--left", positional=True, filled=True)
    ]
    right: Annotated[
        str,
        Opt("B", "Another, of the same rows.", flag="--right", positional=True, filled=True),
    ]
    page: Annotated[
        str | None,
        Opt(
            "FILE",
            "Write a page (.html) of both, also to a URL.",
            panel=PANEL,
            short="-o",
        ),
    ] = None
    rows: PageRows = 500
    manifest: Annotated[
        str | None,
        Opt(
            "MANIFEST",
            "Where prompts and images are; absent: in the manifest that the run of A has read.",
            panel=PANEL,
            filled=True,
        ),
    ] = None
    no_images: NoImages = False
    overwrite: OverwritePage = False
    json: Annotated[bool, Opt("", "Print JSON on standard output.", panel=PANEL)] = False

    def __post_init__(self) -> None:
        check_bounds(self)


@with_options
def compare(options: CompareOptions, reporting: Annotated[ReportOptions, WITHOUT_FIGURES]) -> None:
    """Show which rows have other answers in B than in A, joined by their ids.

    Counts agreement, also by each value of columns that have few. Exits 0 when
    all rows are the same in both, 1 when some differ or are in one alone.
    """
    places = [
        Place(f"output {options.left}", options.left, is_ours=True),
        Place(f"output {options.right}", options.right, is_ours=True),
    ]
    page = None
    if options.page is not None:
        page = checked_page(options.page, options.left, overwrite=options.overwrite)
        places.append(Place(f"page {page}", str(page), written=True))
    check_places(places)
    from vlmbatch.jobs.compare import compare as join
    from vlmbatch.jobs.report import ReportConfig
    from vlmbatch.stats import RunStats

    stats = RunStats()
    config = ReportConfig(options.rows, options.manifest, not options.no_images)
    with early_exits(lambda: "nothing was changed"):
        with (
            Reporting(reporting, data_on_stdout=options.json).display(stats),
            local_copy(options.left, stats) as left,
            local_copy(options.right, stats) as right,
            nullcontext() if page is None else local_file(page, stats) as file,
        ):
            found = join(left, right, file, config, stats)
        if options.json:
            figures = {**asdict(found), "agreement": found.agreement}
            sys.stdout.write(json.dumps(figures, indent=2) + "\n")
            sys.stdout.flush()
        elif not reporting.quiet:
            _print(found, options)
    raise typer.Exit(0 if found.is_same else 1)


def _print(found: Comparison, options: CompareOptions) -> None:
    from rich.table import Table
    from rich.text import Text

    from vlmbatch.display.summary import print_table
    from vlmbatch.jobs.compare import lead, outcome_lines

    console = log.console()
    rows, what = lead(found)
    console.print(f"[bold]{rows}:[/] {what}")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, count in outcome_lines(found):
        table.add_row(name, f"{count:,}")
    print_table(table, console)
    if found.columns and found.same < found.joined:  # else each value agrees as all rows do
        console.print()
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for heading in ("column", "value"):
            table.add_column(heading, overflow="fold")
        for heading in ("rows", "same"):
            table.add_column(heading, justify="right")
        for line in found.columns[:_SHOWN_VALUES]:
            cells = [Text(log.printable(text[:60])) for text in (line.column, line.value)]
            table.add_row(*cells, f"{line.rows:,}", f"{line.same / line.rows:.1%}")
        print_table(table, console)
        if len(found.columns) > _SHOWN_VALUES:
            console.print(f"and {len(found.columns) - _SHOWN_VALUES:,} more that agree no less")
    for row_id, one, other in found.examples:
        console.print()
        lines = (f"id {row_id}", f"  A: {one[:300]}", f"  B: {other[:300]}")
        for shown in lines:
            console.print(Text(log.printable(shown)), soft_wrap=True)
    if found.page_bytes is not None:
        console.print()
        size = f"{found.page_bytes / 1e6:,.1f} MB"
        console.print(Text(log.printable(f"{options.page}: {size}")), soft_wrap=True)
