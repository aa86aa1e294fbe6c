"""Planned rates beside those of the runs in docs/performance.md, on an H100 and an H200."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from vlmbatch.bench.bounds import workload_bounds
from vlmbatch.bench.random_checkpoint import built_in_configs
from vlmbatch.bench.workloads import WORKLOADS, Workload
from vlmbatch.costs.model import model_costs
from vlmbatch.costs.rates import GPUS, parse_gpus, reached_share
from vlmbatch.costs.work import Work, bound, kv_cache_tokens
from vlmbatch.errors import ConfigError
from vlmbatch.models.config import ModelConfig, with_quantization
from vlmbatch.models.family import load_model_config
from vlmbatch.types import ImageGrid

Configs = Callable[[str], ModelConfig]

# What the images of the workloads are to each model: (height, width) in tokens.
PHOTO = {"llava-1.5-7b": (24, 24), "qwen3-vl-8b": (15, 20), "qwen2.5-vl-7b": (17, 23)}
PAGE = {"qwen3-vl-8b": (45, 32), "qwen2.5-vl-7b": (52, 37)}

MEASURED = [  # model, workload, rows, GPU, rows a second
    ("llava-1.5-7b", "classify", 1536, "h100", 73.5),
    ("llava-1.5-7b", "caption", 768, "h100", 29.2),
    ("llava-1.5-7b", "vqa", 1024, "h100", 328),
    ("llava-1.5-7b", "photos", 512, "h100", 68.9),
    ("qwen3-vl-8b", "classify", 768, "h100", 88.4),
    ("qwen3-vl-8b", "caption", 768, "h100", 53.5),
    ("llava-1.5-7b", "classify", 640, "h200", 72.0),
    ("llava-1.5-7b", "caption", 640, "h200", 32.9),
    ("qwen3-vl-8b", "classify", 768, "h200", 90.8),
    ("qwen3-vl-8b", "caption", 768, "h200", 56.9),
    ("qwen3-vl-8b", "pages", 192, "h200", 8.5),
    ("qwen2.5-vl-7b", "classify", 768, "h200", 72.4),
    ("qwen2.5-vl-7b", "pages", 192, "h200", 8.9),
]
QUANTIZED = [
    ("llava-1.5-7b", "classify", 640, "h200", 110.5),
    ("llava-1.5-7b", "caption", 640, "h200", 40.5),
    ("qwen3-vl-8b", "classify", 768, "h200", 121.3),
]


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Configs:
    @cache
    def load(name: str) -> ModelConfig:
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps(dict(built_in_configs()[name])))
        return load_model_config(Path(folder))

    return load


def grid_of(model: str, workload: Workload) -> ImageGrid:
    height, width = (PAGE if workload.picture == "page" else PHOTO)[model]
    return ImageGrid(height, width, height * width, 0)


def work_of(workload: Workload, rows: int, image_tokens: int, image_flops: int) -> Work:
    work = Work()
    for row in range(rows):
        is_first = row < workload.num_images(rows)
        work.add(
            image_tokens + workload.text_tokens,
            workload.max_tokens,
            image_flops if is_first else 0,
            0 if is_first else image_tokens,
        )
    return work


def planned(config: ModelConfig, workload: Workload, rows: int, gpu: str, grid: ImageGrid) -> float:
    costs = model_costs(config, 2, grid)
    work = work_of(workload, rows, grid.num_tokens, costs.image_flops)
    chosen = GPUS[gpu]
    pool = kv_cache_tokens(chosen.memory, costs.decoder_bytes + 10**9, config, costs, 2)
    least = bound(work, costs, chosen.rates, pool, rows)
    return rows * reached_share(config.model_type) / least.serial_seconds


@pytest.mark.parametrize(("model", "name", "rows", "gpu", "measured"), MEASURED)
def test_within_a_quarter_of_measured_runs(
    configs: Configs, model: str, name: str, rows: int, gpu: str, measured: float
) -> None:
    workload = WORKLOADS[name]
    rate = planned(configs(model), workload, rows, gpu, grid_of(model, workload))
    assert rate == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize(("model", "name", "rows", "gpu", "measured"), QUANTIZED)
def test_quantized_weights_too(
    configs: Configs, model: str, name: str, rows: int, gpu: str, measured: float
) -> None:
    workload = WORKLOADS[name]
    config = with_quantization(configs(model), "fp8")
    rate = planned(config, workload, rows, gpu, grid_of(model, workload))
    assert rate == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize(
    ("model", "gpu", "measured"),
    [
        ("llava-1.5-7b", "h100", 126_240),
        ("qwen3-vl-8b", "h100", 387_408),
        ("qwen3-vl-8b", "h200", 828_848),
    ],
)
def test_the_kv_cache_is_as_large_as_measured(
    configs: Configs, model: str, gpu: str, measured: int
) -> None:
    config = configs(model)
    costs = model_costs(config, 2, grid_of(model, WORKLOADS["classify"]))
    pool = kv_cache_tokens(GPUS[gpu].memory, costs.decoder_bytes + 10**9, config, costs, 2)
    assert pool == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("name", ["classify", "caption", "vqa"])
def test_the_bounds_are_those_of_bench(configs: Configs, name: str) -> None:
    workload, rows, rates = WORKLOADS[name], 400, GPUS["h100"].rates
    grid = grid_of("llava-1.5-7b", workload)
    costs = model_costs(configs("llava-1.5-7b"), 2, grid)
    work = work_of(workload, rows, grid.num_tokens, costs.image_flops)
    ours = bound(work, costs, rates, 118_000, rows)
    theirs = workload_bounds(workload, rows, costs, grid.num_tokens, 118_000, rates)
    assert rows / ours.arithmetic_seconds == pytest.approx(theirs.arithmetic_rows_per_second)
    assert ours.batch == theirs.decode_batch
    assert rows / ours.read_seconds == pytest.approx(theirs.bytes_rows_per_second)


def test_gpus_by_name() -> None:
    assert [gpu.name for gpu in parse_gpus("H200, l40s")] == ["h200", "l40s"]
    for names, message in (("h100,h100", "given twice"), ("h900", "no GPU 'h900' is known")):
        with pytest.raises(ConfigError, match=message):
            parse_gpus(names)
