"""``vlmbatch status``: what a run has done, what is left, and what to do next."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmbatch import log
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.remote_output import local_copy, remote_destination
from vlmbatch.commands.urls import is_url
from vlmbatch.config import OutputOptions
from vlmbatch.errors import OutputLockedError

if TYPE_CHECKING:
    from vlmbatch.jobs.parts_status import PartsStatus
    from vlmbatch.jobs.status import RunStatus

_MAX_SHOWN = 200  # characters of a setting

_STATES = {
    "starting": "begun or ended just now,",
    "running": "written now",
    "interrupted": "interrupted: no process is writing it",
    "complete": "complete",
    "gone": "complete once, but the output is gone",
    "replaced": "complete once, but something else has taken the output's place",
}


def status(
    output: Annotated[
        str,
        typer.Argument(metavar="OUTPUT", help="The output of a run: a file, a folder or a URL."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            "--work-dir",
            metavar="FOLDER",
            envvar="VLMBATCH_WORK_DIR",
            help="That of the run, where OUTPUT is a URL.",
        ),
    ] = None,
) -> None:
    """Show what a run has done, what is left, and what to do next.

    Of a folder that `run --shard` writes to, all parts are counted. Disturbs no
    run that is going on. Exits 0 when all rows are answered, 1 when some are
    errors or the run is not finished, 75 while a run is writing the output, 2
    when there is neither an output nor a run.
    """
    log.configure()
    found = _remote_status(output, work_dir) if is_url(output) else _local_status(Path(output))
    with early_exits(lambda: "nothing was changed"):
        if as_json:
            sys.stdout.write(json.dumps(_as_json(found), indent=2) + "\n")
        else:
            _print(found)
        sys.stdout.flush()
    raise typer.Exit(_exit_status(found))


def _local_status(output: Path) -> RunStatus | PartsStatus:
    from vlmbatch.durable.run_paths import output_of
    from vlmbatch.jobs.parts_status import read_parts_status
    from vlmbatch.jobs.status import read_status

    return read_parts_status(output_of(output)) or read_status(output)


def _remote_status(url: str, work_dir: Path | None) -> RunStatus | PartsStatus:
    from vlmbatch.jobs.remote_status import read_remote_status
    from vlmbatch.stats import RunStats

    remote = remote_destination(OutputOptions(output=url, work_dir=work_dir), url)
    return read_remote_status(remote, lambda: local_copy(url, RunStats()))


def _exit_status(found: RunStatus | PartsStatus) -> int:
    if found.is_running:
        return OutputLockedError.exit_status
    return 0 if found.is_complete and not found.errors else 1


def _as_json(found: RunStatus | PartsStatus) -> dict[str, Any]:
    from vlmbatch.jobs.parts_status import PartsStatus

    figures = {
        "output": str(found.output),
        "rows_left": found.rows_left,
        "num_errors": found.num_errors,
        "next_step": found.next_step,
    }
    if not isinstance(found, PartsStatus):
        return {**asdict(found), **figures}
    return {
        **figures,
        "rows_total": found.rows_total,
        "rows_done": found.rows_done,
        "errors": found.errors,
        "error_examples": found.error_examples,
        "parts_total": len(found.parts),
        "parts_done": found.done,
        "parts_running": found.running,
        "parts_interrupted": found.interrupted,
        "parts_missing": found.missing,
        "runs": [asdict(run) for run in found.runs],
        "parts": [None if part is None else _as_json(part) for part in found.parts],
    }


def _print(found: RunStatus | PartsStatus) -> None:
    from rich.table import Table
    from rich.text import Text

    from vlmbatch.display.summary import one_each, print_errors, print_table
    from vlmbatch.jobs.parts_status import PartsStatus

    console = log.stdout_console()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _part_lines(found) if isinstance(found, PartsStatus) else _lines(found):
        table.add_row(name, Text(log.printable(value)))
    print_table(table, console)
    print_errors(found.errors, one_each(found.error_examples), console)
    console.print(Text.assemble("\n", ("next: ", "bold"), found.next_step), soft_wrap=True)


def _lines(found: RunStatus) -> Iterator[tuple[str, str]]:
    yield "output", str(found.output)
    state = _STATES[found.state]
    if found.unput:
        state += ", and not yet put" if found.holder is None else ", and being put"
    if found.holder is not None:
        since = _time(found.holder.started)
        state += f" by process {found.holder.pid} on {found.holder.host}, since {since}"
    yield "state", state
    if found.rows_total is not None:
        yield "rows", _rows(found)
    if found.shards_total is not None:
        yield "shards", f"{found.shards_done:,} of {found.shards_total:,} written"
    if found.started is not None:
        yield "started", _time(found.started)
    if found.updated is not None:
        yield "updated", _time(found.updated)
    yield from _run_lines(found)


def _part_lines(found: PartsStatus) -> Iterator[tuple[str, str]]:
    from vlmbatch.output.all_parts import numbers_text

    yield "output", str(found.output)
    states = {
        "done": found.done,
        "being written": found.running,
        "interrupted": found.interrupted,
        "missing": found.missing,
    }
    counts = ", ".join(f"{len(numbers):,} {name}" for name, numbers in states.items() if numbers)
    yield "parts", f"{len(found.parts):,}: {counts}"
    if found.rows_total is not None:
        yield "rows", _rows(found)
    for number in found.running:
        part = found.parts[number]
        assert part is not None and part.holder is not None
        yield "running", f"{number} on {part.holder.host}, since {_time(part.holder.started)}"
    for run in found.runs:
        yield "running", f"{run} with {run.rows_done:,} rows done"
    for name in ("interrupted", "missing"):
        if states[name]:
            yield name, numbers_text(states[name])
    if (first := next(found.known, None)) is not None:
        yield from _run_lines(first)
    else:
        yield from (("command", run.command) for run in found.runs)


def _rows(found: RunStatus | PartsStatus) -> str:
    ok = found.rows_done - found.num_errors
    return (
        f"{found.rows_done:,} of {found.rows_total:,} done, {found.rows_left:,} left: "
        f"{ok:,} ok, {found.num_errors:,} error{'' if found.num_errors == 1 else 's'}"
    )


def _run_lines(found: RunStatus) -> Iterator[tuple[str, str]]:
    """What a run is, whatever has become of it."""
    from vlmbatch.output.chosen_settings import chosen_settings

    for name in ("manifest", "model"):
        if (value := getattr(found, name)) is not None:
            yield name, value
    if found.settings:
        chosen = chosen_settings(found.settings)
        yield (
            "settings",
            ", ".join(f"{name} {_cut(value)}" for name, value in chosen.items()) or "defaults",
        )
    if found.version is not None:
        yield "version", f"vlmbatch {found.version}"
    if found.command is not None:
        yield "command", found.command


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def _time(iso: str) -> str:
    return iso.replace("T", " ").replace("+00:00", " UTC")
