"""The figures as a table for people, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from vlmbatch import __version__
from vlmbatch.bench.bench import BenchResult, WorkloadResult

CAPTION = (
    "Wall time from opening the manifest to the whole, durable Parquet file; model load is apart. "
    "Every image is new. Before each workload a few rows of other images warm up what is compiled "
    "or captured when first needed. Greedy, {answers}. The last columns are "
    "shares of bounds in rows/s: if arithmetic were all that takes time, if reads of weights and "
    "KV cache were, and if the two took turns, at the rates measured here."
)
GPU_CAPTION = " GPU busy: share of time in which any kernel ran, as the driver samples it."
CPU_CAPTION = " CPU busy: share of the time of all cores."


def print_report(result: BenchResult, console: Console) -> None:
    """One line a workload, and below what it was measured with."""
    on_gpu = not result.device.startswith("CPU")
    weights = ", random weights" if result.random_weights else ""
    answers = "past the end-of-sequence token"
    if result.json_answers:
        answers = "by a JSON schema of ten fields, the last of which has no end"
    table = Table(
        title=f"{Path(result.model).name}{weights}: {result.dtype} on {result.device}, "
        f"{result.num_cores} cores",
        caption=CAPTION.format(answers=answers) + (GPU_CAPTION if on_gpu else CPU_CAPTION),
        caption_justify="left",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column("workload", no_wrap=True)
    busy = "GPU busy" if on_gpu else "CPU busy"
    for heading in ("rows", "rows/s", "tokens/s", busy, "peak RSS"):
        table.add_column(heading, justify="right")
    for bound in ("of arithmetic", "of bytes", "of both"):
        table.add_column(bound, justify="right")
    for line in result.workloads:
        table.add_row(*_cells(line, on_gpu))
    console.print(table)
    if result.quantization is not None:
        console.print(f"quantized: {result.quantization}", soft_wrap=True)
    rates = result.rates
    fp8 = rates.fp8_flops_per_second
    in_fp8 = "" if fp8 is None else f", {_scaled(fp8, 'FLOP/s')} in those of FP8"
    console.print(
        f"measured: {_scaled(rates.flops_per_second, 'FLOP/s')} in matrix products{in_fp8}, "
        f"{_scaled(rates.bytes_per_second, 'B/s')} in copies; engine ready in "
        f"{result.engine_start:.1f} s; KV cache of {result.kv_cache_tokens:,} tokens"
        f"{' each' if result.num_engines > 1 else ''}",
        soft_wrap=True,
    )
    if result.process_starts:
        first, second = result.process_starts
        console.print(
            f"`vlmbatch run` from process start to the first row written: {second:.1f} s "
            f"({first:.1f} s for the process before it)",
            soft_wrap=True,
        )
    for line in result.workloads:
        if line.process is not None:
            console.print(
                f"{line.workload.name}: {line.process.seconds:.1f} s as a whole `vlmbatch run` "
                f"process, {line.process.answering:.1f} s of them answering, at "
                f"{line.process.rows_per_second:,.1f} rows/s",
                soft_wrap=True,
            )
        if line.measured.errors:
            console.print(
                f"{line.workload.name}: {line.measured.errors} rows failed, the first: "
                f"{line.measured.first_error}",
                style="red",
                markup=False,
                soft_wrap=True,
            )


def as_json(result: BenchResult) -> dict[str, Any]:
    """All figures; sizes are in bytes, times in seconds, shares from 0 to 1."""
    return {
        "vlmbatch": __version__,
        "torch": torch.__version__,
        "model": result.model,
        "random_weights": result.random_weights,
        "json_answers": result.json_answers,
        "device": result.device,
        "num_cores": result.num_cores,
        "num_engines": result.num_engines,
        "dtype": result.dtype,
        **({} if result.quantization is None else {"quantization": result.quantization}),
        "kv_cache_tokens": result.kv_cache_tokens,
        "flops_per_second": result.rates.flops_per_second,
        "fp8_flops_per_second": result.rates.fp8_flops_per_second,
        "bytes_per_second": result.rates.bytes_per_second,
        "engine_start_seconds": result.engine_start,
        "process_start_seconds": list(result.process_starts),
        "workloads": {line.workload.name: _workload_json(line) for line in result.workloads},
    }


def _workload_json(line: WorkloadResult) -> dict[str, Any]:
    measured, bounds = line.measured, line.bounds
    rate = measured.rows_per_second
    return {
        "rows": measured.rows,
        "errors": measured.errors,
        "images": line.num_images,
        "image_size": list(line.workload.image_size),
        "image_bytes": line.image_bytes,
        "prompt_tokens": line.prompt_tokens,
        "max_tokens": line.workload.max_tokens,
        "warmup_rows": line.warmup_rows,
        "seconds": measured.seconds,
        "rows_per_second": rate,
        "output_tokens_per_second": measured.output_tokens_per_second,
        "cached_tokens": measured.cached_tokens,
        "gpu_busy_share": measured.gpu_share,
        "cpu_busy_share": measured.cpu_share,
        "peak_rss": measured.peak_rss,
        "process": None if line.process is None else asdict(line.process),
        "bounds": {
            "row_flops": bounds.row_flops,
            "row_bytes": bounds.row_bytes,
            "decode_batch": bounds.decode_batch,
            "arithmetic_rows_per_second": bounds.arithmetic_rows_per_second,
            "arithmetic_share": rate / bounds.arithmetic_rows_per_second,
            "bytes_rows_per_second": bounds.bytes_rows_per_second,
            "bytes_share": rate / bounds.bytes_rows_per_second,
            "serial_rows_per_second": bounds.serial_rows_per_second,
            "serial_share": rate / bounds.serial_rows_per_second,
        },
    }


def _cells(line: WorkloadResult, on_gpu: bool) -> list[str]:
    measured, bounds = line.measured, line.bounds
    rate = measured.rows_per_second
    busy = measured.gpu_share if on_gpu else measured.cpu_share
    limits = (
        bounds.arithmetic_rows_per_second,
        bounds.bytes_rows_per_second,
        bounds.serial_rows_per_second,
    )
    return [
        line.workload.name,
        f"{measured.rows:,}",
        f"{rate:,.1f}",
        f"{measured.output_tokens_per_second:,.0f}",
        "-" if busy is None else f"{busy:.0%}",
        _scaled(measured.peak_rss, "B"),
        *(f"{_percent(rate / limit)} of {_scaled(limit, '')}" for limit in limits),
    ]


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


def _scaled(value: float, unit: str) -> str:
    """Three digits with a decimal prefix: 790 TFLOP/s."""
    prefixes = iter(("", "k", "M", "G", "T", "P"))
    prefix = next(prefixes)
    while value >= 999.5:
        value, prefix = value / 1000, next(prefixes)
    return f"{value:.3g} {prefix}{unit}".rstrip()
