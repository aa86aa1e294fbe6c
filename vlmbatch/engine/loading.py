"""From settings and a checkpoint folder to an engine: resolves every "auto", loads the weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from vlmbatch_kernels.compilations import make_triton_ready
from vlmbatch_kernels.dispatch import has_triton

from vlmbatch import __version__
from vlmbatch.attention import make_backend
from vlmbatch.attention.base import AttentionBackend
from vlmbatch.config import Device, DType, EngineConfig
from vlmbatch.engine.assembly import make_engine
from vlmbatch.engine.engine import Engine
from vlmbatch.engine.gpu import check_usable, memory_use
from vlmbatch.engine.grammars import Grammars
from vlmbatch.engine.kv_cache import resolve_kv_dtype
from vlmbatch.engine.limits import Limits
from vlmbatch.engine.memory import kv_tokens_beside
from vlmbatch.engine.process_group import check_agreement, join
from vlmbatch.engine.rank import ALONE, Rank
from vlmbatch.errors import ConfigError
from vlmbatch.models.config import ModelConfig, WeightDType
from vlmbatch.models.parallel import SINGLE_DEVICE, own_heads
from vlmbatch.models.processor import ImageProcessor, Processor
from vlmbatch.models.registry import load_model, load_vision, random_model
from vlmbatch.models.vision_language_model import VisionModel
from vlmbatch.models.weights import describe_weights
from vlmbatch.start_times import Stages

logger = logging.getLogger(__name__)


class HasDType(Protocol):
    """A configuration that says in what type the weights are stored."""

    @property
    def dtype(self) -> WeightDType: ...


def build_engine(
    folder: Path,
    model_config: ModelConfig,
    config: EngineConfig,
    processor: Processor,
    *,
    rank: Rank = ALONE,
    reserved_bytes: int = 0,
    stages: Stages | None = None,
) -> Engine:
    """Load the checkpoint in ``folder`` onto the device and build an engine around it.

    Where ``processor`` has images come as features, the tower is neither loaded nor allocated.
    ``rank``: of the processes that divide the model, all of which call this and then take the same
    requests and steps. ``reserved_bytes`` of a GPU's memory are left to other processes.
    ``stages``: of loading, so far.

    Raises:
        ConfigError: the device, data type or attention backend is not to be had here, the
            device's memory is too small, or the model cannot be divided over the ranks.
        CheckpointError: the weights do not fit the configuration.
    """
    assert config.quantize is None or model_config.quantization is not None, "see open_model"
    stages = stages or Stages()
    device = resolve_device(config.device)
    if device.type == "cpu" and config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    if device.type == "cuda":
        check_usable(device)
    dtype = resolve_dtype(config.dtype, model_config, device)
    kv_dtype = resolve_kv_dtype(config.kv_cache_dtype, dtype, device)
    backend = make_backend(config.attention_backend, device.type, dtype)
    parallel = SINGLE_DEVICE
    if rank.count > 1:
        parallel = join(rank, device)
        weights = "random" if config.random_weights else describe_weights(folder)
        check_agreement(parallel, _facts(model_config, weights, device, dtype, backend))
        # No step has run from a graph with sums over ranks within it.
        config = replace(config, cuda_graphs=False)
    stages.end("device")
    make_model = random_model if config.random_weights else partial(load_model, folder)
    try:
        with _kernels_made_ready(device):
            model = make_model(
                model_config,
                processor.images,
                device=device,
                dtype=dtype,
                backend=backend,
                parallel=parallel,
            )
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the weights in {str(dtype).removeprefix('torch.')} do not fit into the memory of "
            f"the GPU: when it ran out, {memory_use(device)}"
        ) from error
    stages.end("weights")
    if rank.count > 1:
        model_config = replace(model_config, text=own_heads(model_config.text, parallel))
    if device.type == "cuda" and config.kv_cache_tokens is None:
        limits = Limits.resolve(config, model_config.text, device.type)
        tokens = kv_tokens_beside(
            model,
            model_config,
            limits,
            backend,
            device,
            dtype,
            kv_dtype,
            processor.largest_image(),
            reserved_bytes,
            parallel,
        )
        config = replace(config, kv_cache_tokens=tokens)
        stages.end("kv_measuring")
    grammars = None
    if rank.index == 0:
        text = model_config.text
        eos_token_ids = model_config.eos_token_ids
        grammars = Grammars(processor.tokenizer, eos_token_ids, text.vocab_size)
    engine = make_engine(
        *(model, model_config, config, backend, device, dtype), parallel=parallel, grammars=grammars
    )
    stages.end("kv_cache")
    engine.load_seconds = stages.rounded()
    logger.debug(
        "engine on %s in %s: %s attention, a KV cache of %d tokens, context length %d",
        device,
        str(dtype).removeprefix("torch."),
        backend.name,
        engine.kv_cache_tokens,
        engine.max_model_len,
    )
    return engine


@contextmanager
def _kernels_made_ready(device: torch.device) -> Iterator[None]:
    """Make Triton ready on a thread while the weights are read, which waits for copies mostly."""
    if device.type != "cuda" or not has_triton():
        yield
        return
    with ThreadPoolExecutor(1, thread_name_prefix="triton") as thread:
        ready = thread.submit(make_triton_ready)
        yield
        ready.result()


def _facts(
    model_config: ModelConfig,
    weights: str,
    device: torch.device,
    dtype: torch.dtype,
    backend: AttentionBackend,
) -> dict[str, str]:
    """What ranks must have in common to divide a model."""
    return {
        "version of vlmbatch": __version__,
        "version of torch": str(torch.__version__),
        "configuration": repr(model_config),
        "weights": weights,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "data type": str(dtype).removeprefix("torch."),
        "attention backend": backend.name,
    }


def build_vision(
    folder: Path,
    model_config: ModelConfig,
    config: EngineConfig,
    images: ImageProcessor,
) -> VisionModel:
    """Load only the part of the checkpoint that turns pixels into features; as ``build_engine``."""
    device = resolve_device(config.device)
    if device.type == "cpu" and config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    if device.type == "cuda":
        check_usable(device)
    dtype = resolve_dtype(config.dtype, model_config, device)
    backend = make_backend(config.attention_backend, device.type, dtype)
    return load_vision(folder, model_config, images, device, dtype, backend)


def resolve_device(name: Device) -> torch.device:
    """The device that "auto" stands for: a GPU where torch sees one.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError(
            "--device cuda: torch sees no CUDA device; `vlmbatch doctor` says what is missing"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def resolve_dtype(name: DType, model_config: HasDType, device: torch.device) -> torch.dtype:
    """The data type that "auto" stands for: the checkpoint's own on a GPU, float32 on a CPU."""
    if name == "auto":
        name = model_config.dtype if device.type == "cuda" else "float32"
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
