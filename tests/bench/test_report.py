"""The figures as people and programs get them."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from vlmbatch.bench.bench import BenchResult, WorkloadResult
from vlmbatch.bench.bounds import Bounds
from vlmbatch.bench.report import as_json, print_report
from vlmbatch.bench.run_process import RunProcess
from vlmbatch.bench.timed_run import Measurement
from vlmbatch.bench.workloads import WORKLOADS
from vlmbatch.costs.rates import DeviceRates


def make_result(device: str = "NVIDIA H100", errors: int = 0) -> BenchResult:
    gpu = device != "CPU"
    measured = Measurement(
        rows=768,
        errors=errors,
        first_error="row 7 (id 7): [out] of memory" if errors else None,
        seconds=25.6,
        output_tokens=768 * 128,
        cached_tokens=0,
        peak_rss=3_456_000_000,
        cpu_share=0.25,
        gpu_share=0.97 if gpu else None,
    )
    line = WorkloadResult(
        workload=WORKLOADS["caption"],
        num_images=768,
        image_bytes=75_000,
        prompt_tokens=614,
        warmup_rows=32,
        measured=measured,
        bounds=Bounds(10e12, 60e9, 159, 80.0, 50.0),
        process=RunProcess(40.25, 28.0, 27.4),
    )
    return BenchResult(
        model="models/llava-1.5-7b",
        random_weights=True,
        device=device,
        num_cores=16,
        dtype="bfloat16",
        kv_cache_tokens=118_000,
        rates=DeviceRates(800e12, 3.0e12),
        engine_start=3.2,
        process_starts=(21.0, 9.5),
        workloads=(line,),
    )


def shown(result: BenchResult) -> str:
    console = Console(file=io.StringIO(), width=100, highlight=False)
    print_report(result, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table() -> None:
    text = shown(make_result())
    title, head, line, *rest = text.splitlines()
    assert title.strip() == "llava-1.5-7b, random weights: bfloat16 on NVIDIA H100, 16 cores"
    assert "GPU busy" in head
    figures = "caption 768 30.0 3,840 97% 3.46 GB 38% of 80 60% of 50 98% of 30.8"
    assert line.split() == figures.split()
    after = "\n".join(rest)
    assert "warm up" in after
    assert "800 TFLOP/s" in after and "3 TB/s" in after and "engine ready in 3.2 s" in after
    assert "first row written: 9.5 s (21.0 s" in after
    assert "failed" not in after


def test_the_rate_of_fp8_is_told_where_it_was_measured() -> None:
    result = make_result()
    assert "FP8" not in shown(result)
    rates = replace(result.rates, fp8_flops_per_second=1500e12)
    told = shown(replace(result, rates=rates))
    assert "800 TFLOP/s in matrix products, 1.5 PFLOP/s in those of FP8" in told


def test_on_a_cpu_its_own_share_is_shown() -> None:
    _, head, line, *_ = shown(make_result("CPU")).splitlines()
    assert "CPU busy" in head
    assert "25%" in line


def test_failed_rows_are_told_with_an_example() -> None:
    result = make_result(errors=2)
    assert result.num_errors == 2
    assert "caption: 2 rows failed, the first: row 7 (id 7): [out] of memory" in shown(result)


def test_json_has_every_figure() -> None:
    figures = json.loads(json.dumps(as_json(make_result())))
    assert set(figures) == {
        "vlmbatch",
        "json_answers",
        "torch",
        "model",
        "random_weights",
        "device",
        "num_cores",
        "num_engines",
        "dtype",
        "kv_cache_tokens",
        "flops_per_second",
        "fp8_flops_per_second",
        "bytes_per_second",
        "engine_start_seconds",
        "process_start_seconds",
        "workloads",
    }
    assert figures["process_start_seconds"] == [21.0, 9.5]
    caption = figures["workloads"]["caption"]
    assert set(caption) == {
        "rows",
        "errors",
        "images",
        "image_size",
        "image_bytes",
        "prompt_tokens",
        "max_tokens",
        "process",
        "warmup_rows",
        "seconds",
        "rows_per_second",
        "output_tokens_per_second",
        "cached_tokens",
        "gpu_busy_share",
        "cpu_busy_share",
        "peak_rss",
        "bounds",
    }
    assert caption["rows_per_second"] == pytest.approx(30.0)
    assert caption["gpu_busy_share"] == 0.97
    bounds = caption["bounds"]
    assert bounds["arithmetic_share"] == pytest.approx(30 / 80)
    assert bounds["bytes_share"] == pytest.approx(30 / 50)
    assert bounds["serial_share"] == pytest.approx(30 * (1 / 80 + 1 / 50))


def test_what_is_quantized_is_said() -> None:
    result = make_result()
    assert "quantized" not in shown(result) and "quantization" not in as_json(result)
    result = replace(result, quantization="KV cache in FP8 (e4m3)")
    assert "\nquantized: KV cache in FP8 (e4m3)\n" in shown(result)
    assert as_json(result)["quantization"] == "KV cache in FP8 (e4m3)"
