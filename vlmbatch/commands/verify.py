"""``vlmbatch verify``: some rows answered again, each alone."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from vlmbatch import log
from vlmbatch.commands.command import with_options
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.remote_output import local_copy
from vlmbatch.commands.report import WITHOUT_FIGURES
from vlmbatch.commands.reporting import Reporting, ReportOptions
from vlmbatch.config.option import Opt, check_bounds

if TYPE_CHECKING:
    from vlmbatch.jobs.verify import Verified

_PANEL = "Verifying"
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """What is answered again."""

    output: Annotated[
        str,
        Opt(
            "OUTPUT",
            "The output of a run, with its work folder.",
            flag="--output",
            positional=True,
            filled=True,
        ),
    ]
    rows: Annotated[
        int, Opt("N", "Rows to answer again, spread over the output.", panel=_PANEL, minimum=1)
    ] = 20
    seed: Annotated[
        int,
        Opt(
            "N",
            "Which rows: another number, other rows.",
            panel=_PANEL,
            minimum=0,
            flag="--rows-seed",
        ),
    ] = 0
    huggingface: Annotated[
        bool,
        Opt("", "Answer them by the checkpoint's own class in transformers too.", panel=_PANEL),
    ] = False
    json: Annotated[bool, Opt("", "Print JSON on standard output.", panel=_PANEL)] = False

    def __post_init__(self) -> None:
        check_bounds(self)


@with_options
def verify(options: VerifyOptions, reporting: Annotated[ReportOptions, WITHOUT_FIGURES]) -> None:
    """Answer some rows of OUTPUT again, each alone, and say which differ.

    Model, manifest and options are those of the run: if they have changed since,
    that is said. Exits 0 when all answers are the same, 1 when some differ.
    """
    from vlmbatch.jobs.verify import verify as again
    from vlmbatch.stats import RunStats

    stats = RunStats()
    with early_exits(lambda: f"{stats.rows_done:,} rows were answered again"):
        with (
            Reporting(reporting, data_on_stdout=options.json).display(stats),
            local_copy(options.output, stats) as output,
        ):
            found = again(
                output,
                options.rows,
                stats,
                seed=options.seed,
                huggingface=options.huggingface,
            )
        if options.json:
            sys.stdout.write(json.dumps(found.as_json(), indent=2) + "\n")
            sys.stdout.flush()
        elif not reporting.quiet:
            _print(found)
    raise typer.Exit(1 if found.differences else 0)


def _print(found: Verified) -> None:
    from rich.text import Text

    console = log.console()
    for engine in found.engines:
        differ = sum(1 for difference in found.differences if difference.by == engine)
        who = "alone" if engine == "vlmbatch" else "alone by transformers"
        console.print(
            f"{found.rows:,} of {found.answered:,} answered rows were answered again {who}: "
            f"{found.rows - differ:,} the same, {differ:,} differ",
            soft_wrap=True,
        )
    if found.skipped is not None:
        console.print(Text(log.printable(f"not by transformers: {found.skipped}")), soft_wrap=True)
    for difference in found.differences[:_SHOWN]:
        console.print()
        who = "again" if difference.by == "vlmbatch" else difference.by
        which = "" if difference.answer is None else f", answer {difference.answer:,}"
        for line in (
            f"row {difference.row:,} (id {difference.id}){which}",
            f"  stored: {difference.stored[:300]}",
            f"  {who}: {difference.again[:300]}",
        ):
            console.print(Text(log.printable(line)), soft_wrap=True)
    if found.differences:
        console.print(
            "\nIn 16 bits the same row may be rounded otherwise beside other rows, and an answer "
            "then turns at a token that was about as likely as another; in float32 it does not.",
            soft_wrap=True,
        )
