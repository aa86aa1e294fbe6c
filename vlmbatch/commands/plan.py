"""``vlmbatch plan``: what a run will take, without a GPU or weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmbatch import log
from vlmbatch.commands.command import with_options, without
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.reporting import Reporting, ReportOptions
from vlmbatch.config import ManifestConfig, SamplingParams, SessionConfig
from vlmbatch.config.option import Opt, check_bounds

if TYPE_CHECKING:
    from vlmbatch.jobs.plan import GpuPlan, Plan

_PANEL = "Planning"
_TO_LOOK = without(
    *("device", "gpus", "replicas", "tensor_parallel", "attention_backend", "max_num_seqs"),
    *(
        "max_batched_tokens",
        "no_prefix_caching",
        "host_memory",
        "image_workers",
        "image_timeout",
        "image_decoder",
    ),
)
_BAR = 30  # characters


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What to plan for."""

    gpu: Annotated[
        str,
        Opt(
            "NAMES",
            "GPUs: h100, h200, a100, l40s, l4, a10.",
            panel=_PANEL,
            filled=True,
        ),
    ] = "h100,h200"
    answer_tokens: Annotated[
        int | None,
        Opt(
            "N",
            "Generated tokens that a row is expected to have; absent: its max_tokens, which it may "
            "well not reach.",
            panel=_PANEL,
            minimum=1,
        ),
    ] = None
    price_per_hour: Annotated[
        float | None, Opt("PRICE", "Of one GPU, for the cost.", panel=_PANEL, minimum=0.0)
    ] = None
    json: Annotated[bool, Opt("", "Print JSON on standard output.", panel=_PANEL)] = False

    def __post_init__(self) -> None:
        check_bounds(self)


@with_options
def plan(
    manifest: Annotated[ManifestConfig, without("keep_inputs", "parse_json")],
    session: Annotated[SessionConfig, _TO_LOOK],
    sampling: SamplingParams,
    options: PlanOptions,
    report: Annotated[ReportOptions, without("summary_json", "exit_zero")],
    config_file: Path | None,
) -> None:
    """Tell what `run` on MANIFEST will take: tokens, memory, time and cost on named GPUs.

    Reads the rows and the headers of their images, or those of --sample N rows.
    Exits 0 when all rows looked at can be answered, 1 when some cannot.
    """
    from vlmbatch.costs.rates import parse_gpus

    gpus = parse_gpus(options.gpu)
    from vlmbatch.jobs.plan import PlanConfig
    from vlmbatch.jobs.plan import plan as look
    from vlmbatch.stats import RunStats

    stats = RunStats()
    config = PlanConfig(gpus, options.answer_tokens, options.price_per_hour)
    with early_exits(lambda: f"{stats.rows_done:,} rows were looked at"):
        with Reporting(report, data_on_stdout=options.json).display(stats):
            found = look(session, manifest, sampling, config, stats)
        if options.json:
            sys.stdout.write(json.dumps(found.as_json(), indent=2) + "\n")
        elif not report.quiet:
            _print(found, options)
        sys.stdout.flush()
    raise typer.Exit(1 if found.errors else 0)


def _print(found: Plan, options: PlanOptions) -> None:
    from rich.table import Table
    from rich.text import Text

    from vlmbatch.display.summary import one_each, print_errors, print_table

    console = log.stdout_console()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(found, options):
        table.add_row(name, Text(log.printable(value)))
    print_table(table, console)
    print_errors(found.errors, one_each(found.error_examples), console)
    for name, bars in found.histograms.items():
        if len(bars) > 1:
            console.print()
            console.print(Text(name, style="bold"))
            most = max(count for _, _, count in bars)
            for first, last, count in bars:
                span = f"{first:,}" if first == last else f"{first:,} to {last:,}"
                bar = "█" * -(-_BAR * count // most)
                console.print(Text(f"{span:>20}  {bar:<{_BAR}}  {count:,}"))
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("GPU", no_wrap=True)
    for heading in ("KV cache tokens", "rows at once", "rows/s", "time", "cost"):
        if heading != "cost" or options.price_per_hour is not None:
            table.add_column(heading, justify="right")
    for gpu in found.gpus:
        table.add_row(*_cells(gpu, options))
    print_table(table, console)
    guessed = [gpu.label for gpu in found.gpus if not gpu.is_measured]
    notes = [
        "Times are estimates, from the start of the process to the last row, on one GPU with cores "
        "enough to decode images. Runs that were measured came out within 25 % of them."
    ]
    if guessed:
        notes.append(f"No run was measured on {', '.join(guessed)}: by the data sheet, roughly.")
    for note in notes:
        console.print(Text(f"\n{note}", style="dim"), soft_wrap=True)


def _lines(found: Plan, options: PlanOptions) -> Iterator[tuple[str, str]]:
    looked = found.rows_looked_at
    sample = "" if looked == found.rows else f", {looked:,} of them looked at"
    yield "rows", f"{found.rows:,}{sample}"
    if found.over_context:
        yield "too long", f"{found.over_context:,} rows, for a context of {found.context:,} tokens"
    known = max(1, looked - sum(found.errors.values()) - found.unknown)
    mean = found.generated_tokens / known
    what = "generated expected" if options.answer_tokens is not None else "generated at most"
    if found.scores_classes:
        what = "scored for classes"
    yield (
        "tokens",
        f"{found.prompt_tokens:,} of prompts ({found.image_tokens:,} of images), "
        f"{found.generated_tokens:,} {what} ({mean:,.0f} a row)",
    )
    yield "images", f"{found.distinct_images:,} different ones"
    if found.unknown:
        yield "not known", f"{found.unknown:,} rows with features behind URLs, taken as the others"
    yield (
        "memory",
        f"{_size(found.weight_bytes)} of weights, "
        f"{found.kv_bytes_per_token / 1e3:,.0f} kB of KV cache a token",
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"


def _cells(gpu: GpuPlan, options: PlanOptions) -> list[str]:
    from vlmbatch.display.progress import duration

    if gpu.seconds is None:
        return [gpu.label, f"{gpu.kv_cache_tokens:,}", "", "", "does not fit"]
    rate = "" if gpu.rows_per_second is None else f"{gpu.rows_per_second:,.1f}"
    cells = [gpu.label, f"{gpu.kv_cache_tokens:,}", f"{gpu.batch:,}", rate, duration(gpu.seconds)]
    return cells if gpu.cost is None else [*cells, f"{gpu.cost:,.2f}"]
