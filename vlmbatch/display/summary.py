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

from vlmbatch.display.progress import duration
from vlmbatch.durable.run_paths import parts_work_folder, work_folder_path
from vlmbatch.errors import OutputError
from vlmbatch.log import printable
from vlmbatch.output.openai_lines import errors_path, is_batch_output
from vlmbatch.remote.filesystem import open_filesystem, scheme_of
from vlmbatch.stats import RunStats


def print_run_summary(
    stats: RunStats,
    console: Console,
    output: str,
    *,
    stopped: bool = False,
    in_parts: bool = False,
) -> None:
    """Rows, rates, errors with an example each, and where the output is.

    ``stopped``: the run ended early, so that there is no output yet. ``in_parts``: it is a folder
    of parts, which are yet to be joined.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("rows", _rows(stats, stopped))
    if stats.rows_done > stats.rows_resumed:
        _add_rates(table, stats)
    if stats.quantization is not None:
        table.add_row("quantized", stats.quantization)
    if output == "-":
        table.add_row("output", "standard output")
    elif stopped:
        table.add_row("kept in", Text(printable(_kept_in(output, in_parts))))
    else:
        table.add_row("output", Text(printable(output)))
        if is_batch_output(Path(output)) and stats.num_errors:
            folder, slash, name = output.rpartition("/")  # of a URL or a path
            table.add_row("errors", Text(printable(f"{folder}{slash}{errors_path(Path(name))}")))
    if stats.nothing_to_do:
        console.print("[bold]nothing to do:[/] the output is complete")
        console.print()
    print_table(table, console)
    print_errors(stats.errors, one_each(stats.error_examples), console)
    if stats.nothing_to_do:
        console.print()
        retry = "--retry-failed answers the error rows again, " if stats.num_errors else ""
        console.print(f"{retry}--overwrite starts anew")
    if in_parts and not stopped:
        console.print()
        join = f"next: join the parts with `vlmbatch merge {output} -o FILE`"
        console.print(Text(printable(join)), soft_wrap=True)


def _kept_in(output: str, in_parts: bool) -> str:
    """Where the rows of a run are that has been stopped."""
    if not in_parts:
        return str(work_folder_path(Path(output)))
    if scheme_of(output) is not None:
        return f"{output} (parts that are done), and work folders of the nodes (those under way)"
    return str(parts_work_folder(Path(output)))


def _rows(stats: RunStats, stopped: bool) -> str:
    earlier = f"; {stats.rows_earlier:,} done by an earlier run" if stats.rows_earlier else ""
    if stopped:
        total = "" if stats.rows_total is None else f" of {stats.rows_total:,}"
        return f"{stats.rows_finished:,}{total} done: {_errors(stats)}{earlier}"
    figures = stats.summary()
    return f"{figures['rows']:,}: {figures['ok']:,} ok, {_errors(stats)}{earlier}"


def _add_rates(table: Table, stats: RunStats) -> None:
    figures = stats.summary()
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
    if stats.rows_retried:
        still = f"{stats.rows_looping:,} of them in vain"
        table.add_row("tried again", f"{stats.rows_retried:,} rows whose answer looped, {still}")
    if stats.engines:
        table.add_row("engines", f"{_shares(stats.engines, 'rows')} rows")
    if stats.nodes:
        table.add_row("nodes", Text(printable(f"{_shares(stats.nodes, 'rows')} rows")))


def _shares(shares: Mapping[str, Mapping[str, int]], what: str) -> str:
    return ", ".join(f"{name}: {share[what]:,}" for name, share in shares.items())


def print_merge_summary(stats: RunStats, console: Console, folder: str, output: str) -> None:
    """How many rows were joined, where they are, and their errors with an example each."""
    if stats.nothing_to_do:
        console.print("[bold]nothing to do:[/] the parts are joined already")
        console.print()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    ok = stats.rows_done - stats.num_errors
    table.add_row("rows", f"{stats.rows_done:,}: {ok:,} ok, {_errors(stats)}")
    table.add_row("parts", Text(printable(folder)))
    table.add_row("output", Text(printable(output)))
    print_table(table, console)
    print_errors(stats.errors, one_each(stats.error_examples), console)


def print_validation_summary(
    stats: RunStats, examples: Mapping[str, Sequence[str]], console: Console
) -> None:
    """How many rows can be answered, and the errors of the others with a few examples each."""
    figures = stats.summary()
    console.print(
        f"[bold]{_counted(figures['rows'], 'row')} checked[/] in "
        f"{_elapsed(figures['seconds'])}: "
        f"{figures['ok']:,} can be answered, {figures['errors']:,} cannot"
    )
    print_errors(stats.errors, examples, console)


def print_feature_summary(
    stats: RunStats,
    num_encoded: int,
    examples: Mapping[str, Sequence[str]],
    command: str,
    console: Console,
) -> None:
    """How many images have features, which rows have none, and the next ``command``."""
    figures = stats.summary()
    console.print(
        f"[bold]{figures['rows']:,} rows[/] in {_elapsed(figures['seconds'])}: "
        f"{figures['images']:,} images have features, {num_encoded:,} of them computed now and "
        f"once each; {_errors(stats)}"
    )
    if stats.engines:
        console.print(f"computed by {_shares(stats.engines, 'images')} images")
    print_errors(stats.errors, examples, console)
    console.print()
    console.print(Text(printable(f"next: {command}")), soft_wrap=True)


def one_each(examples: Mapping[str, object]) -> dict[str, list[str]]:
    """One example of each code, as ``print_errors`` takes them."""
    return {code: [str(example)] for code, example in examples.items()}


def print_errors(
    errors: Mapping[str, int], examples: Mapping[str, Sequence[str]], console: Console
) -> None:
    """For each error code how often it came, the most frequent first, and messages of its kind."""
    if not errors:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("error", style="red", no_wrap=True, overflow="fold")
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("first", overflow="fold")
    for code, count in sorted(errors.items(), key=lambda item: (-item[1], item[0])):
        lines = "\n".join(printable(line) for line in examples.get(code, ()))
        table.add_row(str(code), f"{count:,}", Text(lines))
    console.print()
    print_table(table, console)


def print_table(table: Table, console: Console) -> None:
    """Print a table without what is of use on a terminal alone."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():  # the padding of cells is of no use in a file
        console.print(Text(line.rstrip()), soft_wrap=True)


def _errors(stats: RunStats) -> str:
    return _counted(stats.num_errors, "error")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _elapsed(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def write_json(figures: Mapping[str, Any], destination: str) -> None:
    """Write the figures to a file, to an object by its URL, or to standard output for ``-``.

    Raises:
        OutputError: the file cannot be written.
        RemoteError: the store refuses, or cannot be reached.
    """
    text = json.dumps(figures, indent=2) + "\n"
    if destination == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    if scheme_of(destination) is not None:
        from vlmbatch.remote.puts import replace_object

        replace_object(text.encode(), open_filesystem(destination))
        return
    try:
        Path(destination).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror}") from error
