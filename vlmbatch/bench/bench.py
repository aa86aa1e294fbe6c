"""The whole benchmark on one screen: inputs, device rates, engine, and each workload timed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vlmbatch.bench.bounds import Bounds, workload_bounds
from vlmbatch.bench.config import BenchConfig
from vlmbatch.bench.device_rates import measure_rates
from vlmbatch.bench.engines import BenchEngines, bench_engines
from vlmbatch.bench.random_weights import write_random_weights
from vlmbatch.bench.run_process import RunProcess, seconds_to_first_row, time_run
from vlmbatch.bench.setup import (
    Job,
    make_jobs,
    open_checkpoint,
    resolve_bench_model,
    writing,
)
from vlmbatch.bench.timed_run import Measurement, timed_run
from vlmbatch.bench.workloads import Workload
from vlmbatch.costs.model import ModelCosts, model_costs
from vlmbatch.costs.rates import DeviceRates
from vlmbatch.engine.kv_cache import resolve_kv_dtype
from vlmbatch.engine.loading import resolve_device, resolve_dtype
from vlmbatch.log import logger
from vlmbatch.models.config import with_quantization
from vlmbatch.models.family import load_model_config
from vlmbatch.models.processor import ImageProcessor
from vlmbatch.session.cores import available_cores
from vlmbatch.session.engines import engine_places
from vlmbatch.session.open import open_model


@dataclass(frozen=True, slots=True)
class WorkloadResult:
    """One workload's figures beside what the device allows at best."""

    workload: Workload
    num_images: int
    image_bytes: int  # mean size of a JPEG
    prompt_tokens: int
    warmup_rows: int
    measured: Measurement
    bounds: Bounds
    process: RunProcess | None = None  # that answered the same manifest


@dataclass(frozen=True, slots=True)
class BenchResult:
    """All figures, and what they were measured with. Times are in seconds."""

    model: str
    random_weights: bool
    device: str
    num_cores: int
    dtype: str
    kv_cache_tokens: int
    rates: DeviceRates
    engine_start: float  # weights onto the device, and the KV pool
    process_starts: tuple[float, ...]  # to the first row: a first process, then a second
    workloads: tuple[WorkloadResult, ...]
    quantization: str | None = None  # what is quantized, for people
    json_answers: bool = False  # whether they follow a schema
    num_engines: int = 1  # each has a KV cache, and on GPUs the rates above

    @property
    def num_errors(self) -> int:
        return sum(result.measured.errors for result in self.workloads)


def bench(config: BenchConfig) -> BenchResult:
    """Make inputs in a temporary folder and measure every workload on one engine, or several.

    Raises:
        UsageError: model, device or sizes cannot be used.
        OutputError: the inputs or the answers cannot be written.
        RunStoppedError: a signal ended it.
    """
    with TemporaryDirectory(prefix="vlmbatch-bench-", ignore_cleanup_errors=True) as name:
        return _bench(config, Path(name))


def _bench(config: BenchConfig, folder: Path) -> BenchResult:
    places = engine_places(config.engine, "one")
    device = resolve_device(config.engine.device)
    name, random_weights = resolve_bench_model(config, device.type)
    config = replace(config, engine=replace(config.engine, random_weights=random_weights))
    checkpoint = open_checkpoint(name, random_weights=random_weights, folder=folder / "checkpoint")
    stored = load_model_config(checkpoint)
    model = with_quantization(stored, config.engine.quantize)
    dtype = resolve_dtype(config.engine.dtype, model, device)
    kv_dtype = resolve_kv_dtype(config.engine.kv_cache_dtype, dtype, device)
    jobs = make_jobs(config, checkpoint, folder, device.type, len(places) or 1)
    process_starts: tuple[float, ...] = ()
    processes: dict[str, RunProcess] = {}
    if config.startup:
        if random_weights:
            logger.info("writing the checkpoint")
            with writing("the checkpoint"):
                write_random_weights(checkpoint, stored, device, dtype)
        logger.info("timing the start of `vlmbatch run`")
        process_starts = tuple(seconds_to_first_row(jobs[0].warmup) for _ in range(2))
        for job in jobs:
            logger.info("%s: timing `vlmbatch run`", job.workload.name)
            output = folder / f"{job.workload.name}-process.parquet"
            processes[job.workload.name] = time_run(job.timed, output)
    rates = measure_rates(device, dtype, fp8=model.quantization is not None)

    logger.info("loading %s", name)
    started = time.perf_counter()
    session = jobs[0].timed.session
    inputs = open_model(session)
    with bench_engines(session, inputs, places, device) as engines:
        engine_start = time.perf_counter() - started
        images = inputs.processor.images
        assert images is not None
        measured = []
        for job in jobs:
            costs = model_costs(model, dtype.itemsize, job.workload.grid(images), kv_dtype.itemsize)
            line = _measure(job, images, engines, costs, rates)
            measured.append(replace(line, process=processes.get(job.workload.name)))
        return BenchResult(
            model=name,
            random_weights=random_weights,
            device=_device_name(device, engines),
            num_cores=available_cores(),
            dtype=str(dtype).removeprefix("torch."),
            kv_cache_tokens=engines.kv_cache_tokens,
            rates=rates,
            engine_start=engine_start,
            process_starts=process_starts,
            workloads=tuple(measured),
            quantization=inputs.quantization(session.engine),
            num_engines=engines.number,
            json_answers=config.json_answers,
        )


def _measure(
    job: Job,
    images: ImageProcessor,
    engines: BenchEngines,
    costs: ModelCosts,
    rates: DeviceRates,
) -> WorkloadResult:
    workload = job.workload
    logger.info("%s: warming up", workload.name)
    warmup = timed_run(job.warmup, workload, engines)
    logger.info("%s: answering %d rows", workload.name, job.num_images * workload.questions)
    measured = timed_run(job.timed, workload, engines)
    image_tokens = workload.grid(images).num_tokens
    devices = len(engines.devices)
    bounds = workload_bounds(
        workload,
        -(-measured.rows * engines.ranks // devices),
        costs,
        image_tokens,
        engines.kv_cache_tokens,
        rates.of_several(devices),
    )
    return WorkloadResult(
        workload=workload,
        num_images=job.num_images,
        image_bytes=job.image_bytes,
        prompt_tokens=image_tokens + workload.text_tokens,
        warmup_rows=warmup.rows,
        measured=measured,
        bounds=bounds,
    )


def _device_name(device: torch.device, engines: BenchEngines) -> str:
    divided = f", {engines.ranks} an engine" if engines.ranks > 1 else ""
    if device.type != "cuda":
        if engines.number == engines.ranks == 1:
            return "CPU"
        number = f"{engines.number} engine{'s' * (engines.number > 1)}"
        return f"CPU, {number}" + (f" of {engines.ranks} ranks" if divided else "")
    name, number_of_gpus = torch.cuda.get_device_name(device), len(engines.devices)
    return name if number_of_gpus == 1 else f"{number_of_gpus} x {name}{divided}"
