"""What to measure, and its inputs on disk: a checkpoint, and manifests with their images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from safetensors import SafetensorError

from vlmbatch.bench.config import BenchConfig
from vlmbatch.bench.inputs import write_inputs
from vlmbatch.bench.json_answers import TEN_FIELDS
from vlmbatch.bench.random_checkpoint import built_in_configs, prepare_checkpoint
from vlmbatch.bench.workloads import Workload
from vlmbatch.config import (
    FileDestination,
    ImageArguments,
    JobConfig,
    ManifestConfig,
    PromptConfig,
    SamplingParams,
    SessionConfig,
)
from vlmbatch.errors import ConfigError, OutputError
from vlmbatch.log import logger
from vlmbatch.models.family import load_model_config, load_processor
from vlmbatch.models.hub import resolve_model
from vlmbatch.session.cores import available_cores

GPU_MODEL = "llava-1.5-7b"
SAMPLE_MODEL = Path(__file__).parents[2] / "samples/tiny-llava"
_GPU_WARMUP_ROWS, _CPU_WARMUP_ROWS = 64, 8


@dataclass(frozen=True, slots=True)
class Job:
    """A workload's inputs on disk, as runs take them: to warm up, and to be timed."""

    workload: Workload
    num_images: int
    warmup: JobConfig
    timed: JobConfig
    image_bytes: int  # mean size of a JPEG


def resolve_bench_model(config: BenchConfig, device: str) -> tuple[str, bool]:
    """The model to measure, and whether its weights are random.

    Raises:
        ConfigError: none is given and none is here, or a built-in config is to have weights.
    """
    if config.model is None and device == "cuda":
        return GPU_MODEL, True
    if config.model is None and not SAMPLE_MODEL.is_dir():
        raise ConfigError(
            "no model given, and the sample model is not here: add --model with a checkpoint "
            f"folder, or --model {GPU_MODEL} --random-weights"
        )
    model = str(SAMPLE_MODEL) if config.model is None else config.model
    if not config.random_weights and model in built_in_configs() and not Path(model).exists():
        raise ConfigError(f"{model} is a config without weights: add --random-weights")
    return model, config.random_weights


def open_checkpoint(model: str, *, random_weights: bool, folder: Path) -> Path:
    """The checkpoint's folder; for random weights ``folder``, filled with all but the weights.

    Raises:
        CheckpointError: no such model, or one that cannot be used.
        OutputError: ``folder`` cannot be written.
    """
    if not random_weights:
        return resolve_model(model)
    with writing("the checkpoint"):
        folder.mkdir()
        prepare_checkpoint(model, folder)
    return folder


def make_jobs(
    config: BenchConfig, checkpoint: Path, folder: Path, device: str, num_engines: int = 1
) -> list[Job]:
    """Write every workload's inputs below ``folder``; each of several GPUs has as many rows as one.

    Raises:
        UsageError: the checkpoint cannot be used, or its context is too short for a workload.
        OutputError: ``folder`` cannot be written.
    """
    processor = load_processor(
        checkpoint,
        load_model_config(checkpoint),
        PromptConfig(),
        ImageArguments(),
        config.engine.max_model_len,
    )
    on_gpu = device == "cuda"

    def run_config(workload: Workload, num_images: int, purpose: str) -> JobConfig:
        inputs = folder / f"{workload.name}-{purpose}"
        seed = crc32(inputs.name.encode())  # no two runs have an image in common
        with writing("the inputs"):
            manifest = write_inputs(
                workload, num_images, inputs, processor, seed, available_cores()
            )
        return JobConfig(
            session=SessionConfig(
                str(checkpoint), engine=config.engine, image_loading=config.image_loading
            ),
            manifest=ManifestConfig(str(manifest)),
            destination=FileDestination(inputs / "answers.parquet"),
            sampling=sampling(workload),
        )

    def sampling(workload: Workload) -> SamplingParams:
        """Each answer has its full length."""
        if config.json_answers:
            schema = json.dumps(TEN_FIELDS)
            return SamplingParams(max_tokens=workload.max_tokens, json_schema=schema)
        return SamplingParams(max_tokens=workload.max_tokens, ignore_eos=True)

    def job(workload: Workload) -> Job:
        rows = config.rows or (workload.gpu_rows * num_engines if on_gpu else workload.cpu_rows)
        warmup_rows = min(rows, (_GPU_WARMUP_ROWS if on_gpu else _CPU_WARMUP_ROWS) * num_engines)
        num_images = workload.num_images(rows)
        logger.info("%s: making %d images", workload.name, num_images)
        warmup = run_config(workload, workload.num_images(warmup_rows), "warmup")
        timed = run_config(workload, num_images, "timed")
        images = Path(timed.manifest.source).parent.glob("images/*")
        image_bytes = sum(image.stat().st_size for image in images) // num_images
        return Job(workload, num_images, warmup, timed, image_bytes)

    return [job(workload.on(device)) for workload in config.workloads]


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn failures to write into an OutputError that names ``what``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {what} of the benchmark: {error}") from error
