"""What is left to read when a command has ended: a table, and the figures as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmbatch.data.validate import RowIssue
from vlmbatch.errors import ErrorCode, OutputError
from vlmbatch.log import printable
from vlmbatch.progress import duration
from vlmbatch.stats import RunStats


def print_run_summary(stats: RunStats, console: Console, output: str) -> None:
    """Rows, rates, errors with an example each, and where the output is."""
    figures = stats.summary()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    earlier = f"; {stats.rows_resumed:,} done by an earlier run" if stats.rows_resumed else ""
    rows = f"{figures['rows']:,}: {figures['ok']:,} ok, {_errors(stats)}{earlier}"
    table.add_row("rows", rows)
    if stats.rows_done > stats.rows_resumed:
        table.add_row(
            "time",
            f"{_elapsed(figures['seconds'])}, of it {_elapsed(figures['processing_seconds'])} "
            f"answering: {figures['rows_per_second']:,.1f} rows/s, "
            f"{figures['images_per_second']:,.1f} images/s",
        )
        table.add_row(
            "tokens",
            f"{figures['prompt_tokens']:,} prompt ({figures['image_tokens']:,} image, "
            f"{figures['cached_tokens']:,} from the prefix cache), "
            f"{figures['completion_tokens']:,} generated: "
            f"{figures['completion_tokens_per_second']:,.0f}/s",
        )
    table.add_row("output", Text("standard output" if output == "-" else printable(output)))
    _print(table, console)
    print_errors(stats, {code: [text] for code, text in stats.error_examples.items()}, console)


def print_validation_summary(
    stats: RunStats, examples: Mapping[ErrorCode, Sequence[RowIssue]], console: Console
) -> None:
    """How many rows can be answered, and the errors of the others with a few examples each."""
    figures = stats.summary()
    console.print(
        f"[bold]{figures['rows']:,} rows checked[/] in {_elapsed(figures['seconds'])}: "
        f"{figures['ok']:,} can be answered, {figures['errors']:,} cannot"
    )
    shown = {
        str(code): [f"{issue.file}:{issue.line} (id {issue.id}): {issue.message}" for issue in some]
        for code, some in examples.items()
    }
    print_errors(stats, shown, console)


def print_errors(stats: RunStats, examples: Mapping[str, Sequence[str]], console: Console) -> None:
    """For each error code how often it came, and the first messages of its kind."""
    if not stats.errors:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("error", style="red", no_wrap=True, overflow="fold")
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("first", overflow="fold")
    for code, count in stats.errors.most_common():
        lines = "\n".join(printable(line) for line in examples.get(code, ()))
        table.add_row(str(code), f"{count:,}", Text(lines))
    console.print()
    _print(table, console)


def _print(table: Table, console: Console) -> None:
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():  # the padding of cells is of no use in a file
        console.print(Text(line.rstrip()), soft_wrap=True)


def _errors(stats: RunStats) -> str:
    return f"{stats.num_errors:,} error" + ("" if stats.num_errors == 1 else "s")


def _elapsed(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def write_json(figures: Mapping[str, Any], destination: str) -> None:
    """Write the figures to a file, or to standard output for ``-``.

    Raises:
        OutputError: the file cannot be written.
    """
    text = json.dumps(figures, indent=2) + "\n"
    if destination == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        Path(destination).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror}") from error
