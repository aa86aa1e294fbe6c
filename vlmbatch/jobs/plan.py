"""What a run will take, from its rows and its model's configuration: no GPU, no weights."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from vlmbatch.config import ManifestConfig, SamplingParams, SessionConfig
from vlmbatch.costs.model import ModelCosts, model_costs
from vlmbatch.costs.rates import Gpu, reached_share
from vlmbatch.costs.work import Work, bound, kv_cache_tokens
from vlmbatch.errors import ErrorCode, RowError, UsageError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.jobs.planned_rows import PlannedRows
from vlmbatch.manifest.validate import FETCH_THREADS, THREADS, sized_rows
from vlmbatch.models.config import ModelConfig
from vlmbatch.session.image_grids import HeaderGrids
from vlmbatch.session.open import ModelInputs, open_inputs, opening_stage
from vlmbatch.stats import RunStats
from vlmbatch.types import ImageGrid

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_TOWER_BYTES = 10**9  # about, where the checkpoint's files do not tell
_START_SECONDS = 15.0  # of a process with its weights at hand, as measured


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """``answer_tokens``: generated tokens that a row is taken to have; None: its ``max_tokens``.
    ``price_per_hour``: of one GPU."""

    gpus: tuple[Gpu, ...]
    answer_tokens: int | None = None
    price_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """One GPU's part. ``seconds``: from process start to the last row; None: the model, or a row
    of its context's length, does not fit. ``cost``: in the currency of the price."""

    name: str
    label: str
    is_measured: bool
    memory: int
    kv_cache_tokens: int
    batch: int = 0
    rows_per_second: float | None = None
    seconds: float | None = None
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes are in bytes, times in seconds. ``rows_looked_at``: of ``rows``; counts are of these.

    ``generated_tokens``: with ``scores_classes``, those that are scored. ``histograms``: bars of
    (first value, last value, rows) by name. ``unknown``: rows with features behind URLs, which are
    taken to be as the others.
    """

    model: str
    rows: int
    rows_looked_at: int
    errors: dict[str, int]
    error_examples: dict[str, str]
    over_context: int
    context: int
    unknown: int
    prompt_tokens: int
    image_tokens: int
    generated_tokens: int
    scores_classes: bool
    distinct_images: int
    histograms: dict[str, list[tuple[int, int, int]]]
    weight_bytes: int
    kv_bytes_per_token: int
    gpus: tuple[GpuPlan, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    session: SessionConfig,
    manifest: ManifestConfig,
    sampling: SamplingParams,
    config: PlanConfig,
    stats: RunStats,
) -> Plan:
    """Look at every row, or at those of a sample, and sum up what they take.

    Raises:
        UsageError: model or manifest cannot be used, or transformers would answer.
    """
    stats.stage = opening_stage(session)
    inputs = open_inputs(session, manifest, sampling, stats=stats)
    if isinstance(inputs.model, HfConfig):
        raise UsageError(
            f"{session.model} has no family of its own and is answered by transformers: what that "
            "takes is not known. Time a run with --sample 200"
        )
    stats.stage = "reading the manifest"
    info = inputs.manifest.scan()
    stats.rows_total = info.num_rows
    stats.stage, stats.work_started = "looking at rows", time.monotonic()
    found = PlannedRows(inputs.model, inputs.processor, config.answer_tokens)
    rows = inputs.manifest.rows()
    threads = FETCH_THREADS if inputs.manifest.fetches_images else THREADS
    grids = HeaderGrids(session, inputs)
    with closing(sized_rows(rows, inputs.processor, grids, threads)) as sizes:
        for row, size in sizes:
            stats.rows_done += 1
            found.add(row, size)
            if isinstance(size, RowError):
                stats.errors[size.code] += 1
    total = info.manifest_rows
    weights = _weight_bytes(session, inputs, inputs.model)
    kv_itemsize = 1 if session.engine.kv_cache_dtype == "fp8" else None
    costs = found.costs(_itemsize(session, inputs.model), kv_itemsize)
    scale = total / max(1, stats.rows_done)
    answered = round(scale * (found.work.rows + found.unknown))
    result = Plan(
        model=session.model,
        rows=total,
        rows_looked_at=stats.rows_done,
        errors=dict(stats.errors.most_common()),
        error_examples=found.examples,
        over_context=stats.errors[ErrorCode.PROMPT_TOO_LONG],
        context=inputs.processor.max_model_len,
        unknown=found.unknown,
        prompt_tokens=found.prompt_tokens.total(),
        image_tokens=found.image_tokens.total(),
        generated_tokens=found.work.head_tokens,
        scores_classes=bool(sampling.choices),
        distinct_images=found.distinct_images,
        histograms=found.histograms(),
        weight_bytes=weights,
        kv_bytes_per_token=costs.kv_bytes_per_token,
        gpus=tuple(
            _on_gpu(gpu, found.work, answered, costs, inputs.model, weights, config, session)
            for gpu in config.gpus
        ),
    )
    stats.finish()
    return result


def _on_gpu(
    gpu: Gpu,
    work: Work,
    rows: int,
    costs: ModelCosts,
    model: ModelConfig,
    weights: int,
    config: PlanConfig,
    session: SessionConfig,
) -> GpuPlan:
    tokens = kv_cache_tokens(gpu.memory, weights, model, costs, _itemsize(session, model))
    longest = session.engine.max_model_len or model.text.max_position_embeddings
    wanted = session.engine.kv_cache_tokens
    fits = tokens >= (wanted or longest)
    if fits and wanted is not None:
        tokens = wanted
    if not fits:
        return GpuPlan(gpu.name, gpu.label, gpu.is_measured, gpu.memory, tokens)
    least = bound(work, costs, gpu.rates, tokens, rows)
    seconds = least.serial_seconds / reached_share(model.model_type)
    whole = seconds + _START_SECONDS
    price = config.price_per_hour
    return GpuPlan(
        *(gpu.name, gpu.label, gpu.is_measured, gpu.memory, tokens, least.batch),
        rows_per_second=rows / seconds if seconds else None,
        seconds=whole,
        cost=None if price is None else price * whole / 3600,
    )


def _itemsize(session: SessionConfig, model: ModelConfig) -> int:
    dtype = session.engine.dtype
    return _BYTES[model.dtype if dtype == "auto" else dtype]


def _weight_bytes(session: SessionConfig, inputs: ModelInputs, model: ModelConfig) -> int:
    """Of the checkpoint's files where they are as they will be loaded, else as counted.

    What the files have beside the decoder, which is counted, is the tower's.
    """
    files = sum(path.stat().st_size for path in inputs.folder.glob("*.safetensors"))
    if files and session.engine.quantize is None and session.engine.dtype == "auto":
        return files
    itemsize, any_grid = _itemsize(session, model), ImageGrid(1, 1, 1, 3)
    decoder = model_costs(model, itemsize, any_grid).decoder_bytes
    if not files:
        return decoder + _TOWER_BYTES
    stored = model if session.engine.quantize is None else replace(model, quantization=None)
    stored_itemsize = _BYTES[model.dtype]
    tower = files - model_costs(stored, stored_itemsize, any_grid).decoder_bytes
    return decoder + max(0, tower) * itemsize // stored_itemsize
