"""The engine and what decodes images beside it, loaded for a run, the Python API or the server."""

from __future__ import annotations

import gc
import sys
from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING

from vlmbatch.config import SessionConfig
from vlmbatch.engine.rank import ALONE, Rank
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.images.loading.shared_fetches import KEEP_SECONDS
from vlmbatch.log import logger
from vlmbatch.models.config import ModelConfig
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.replicas.choices import ChoiceScorer
from vlmbatch.replicas.composed import ComposedReplica
from vlmbatch.replicas.several_answers import several_answers
from vlmbatch.session.cores import default_cpu_threads, default_image_workers, may_have_cuda
from vlmbatch.session.gpu_decoder import check_gpu_decoder, reserved_bytes
from vlmbatch.session.open import ModelInputs, open_images
from vlmbatch.start_times import Stages
from vlmbatch.types import Request

if TYPE_CHECKING:
    from vlmbatch.engine.engine import Engine
    from vlmbatch.hf.replica import HfReplica
    from vlmbatch.images.loading.loader import ImageLoader
    from vlmbatch.replicas.replica import OnBegin, Replica

# Beside a GPU, a thread that wants the interpreter lock gets it after so long from one that only
# computes: the default of 5 ms is a whole decode step.
SWITCH_INTERVAL_S = 0.001

HF_BATCH = {"cpu": 8, "cuda": 32}  # rows: a batch ends with its longest answer


def start_images(
    config: SessionConfig, inputs: ModelInputs, num_engines: int = 1, gpu: int | None = None
) -> ImageLoader:
    """What decodes images beside engines that are yet to be loaded: processes start meanwhile.

    Where these are a CPU's, without waiting for torch. ``gpu``: see ``open_images``.

    Raises:
        ConfigError: the device is not to be had here.
    """
    return open_images(config, inputs, image_workers(config, num_engines), gpu, KEEP_SECONDS)


def image_workers(config: SessionConfig, num_engines: int) -> int:
    """How many processes decode beside so many engines.

    Raises:
        ConfigError: the device is not to be had here.
    """
    num_workers, device = config.image_loading.workers, config.engine.device
    if num_workers is not None:
        return num_workers
    on_cpu = device == "cpu" or (device == "auto" and not may_have_cuda())
    if not on_cpu:
        from vlmbatch.engine.loading import resolve_device

        on_cpu = resolve_device(device).type == "cpu"
    return default_image_workers(on_cpu, num_engines)


def load_engine(config: SessionConfig, inputs: ModelInputs, rank: Rank = ALONE) -> Engine:
    """Load the weights onto the device, or this rank's, and build the engine around them.

    Raises:
        ConfigError: what the settings ask for is not to be had here.
        CheckpointError: the weights do not fit the configuration.
    """
    stages = Stages()
    from vlmbatch.engine.loading import build_engine

    stages.end("imports")
    check_gpu_decoder(config, inputs.processor)  # also where images are opened later
    assert isinstance(inputs.model, ModelConfig)
    settings = config.engine
    if settings.cpu_threads is None:
        settings = replace(settings, cpu_threads=default_cpu_threads())
    engine = build_engine(
        inputs.folder,
        inputs.model,
        settings,
        inputs.processor,
        rank=rank,
        reserved_bytes=reserved_bytes(config, inputs.processor),
        stages=stages,
    )
    if engine.device.type == "cuda":
        sys.setswitchinterval(SWITCH_INTERVAL_S)
    return engine


def load_with_transformers(
    config: SessionConfig, inputs: ModelInputs, on_begin: OnBegin | None = None
) -> HfReplica:
    """Load the checkpoint's own class of transformers onto the device; to be closed.

    ``on_begin``: see ``HfReplica``.

    Raises:
        ConfigError: the device is not to be had here, or its memory is too small.
        CheckpointError: the weights do not fit the configuration.
    """
    import torch

    from vlmbatch.engine.grammars import Grammars
    from vlmbatch.engine.loading import resolve_device, resolve_dtype
    from vlmbatch.hf.batch import signature
    from vlmbatch.hf.model import load_hf_model
    from vlmbatch.hf.padding import pads_safely
    from vlmbatch.hf.processor import HfProcessor
    from vlmbatch.hf.replica import HfReplica

    check_gpu_decoder(config, inputs.processor)
    assert isinstance(inputs.model, HfConfig)
    assert isinstance(inputs.processor, HfProcessor)
    settings = config.engine
    device = resolve_device(settings.device)
    on_cpu = device.type == "cpu"
    threads = settings.cpu_threads or default_cpu_threads()
    loaded = load_hf_model(
        inputs.folder, inputs.model, device, resolve_dtype(settings.dtype, inputs.model, device)
    )

    pads = pads_safely(loaded.generator, inputs.processor)
    if not pads:
        logger.info(
            "padding a prompt may change the answers of %s: batches hold prompts of one length",
            inputs.model.model_type,
        )

    def kind(request: Request) -> Hashable:
        return signature(request), None if pads else len(request.token_ids)

    def on_start() -> None:  # what is set on one thread does not hold on another
        if on_cpu and threads is not None:
            torch.set_num_threads(threads)

    return HfReplica(
        loaded.generator,
        inputs.processor.tokenizer,
        kind,
        eos_token_ids=loaded.eos_token_ids,
        max_model_len=inputs.model.context_length,
        max_num_seqs=settings.max_num_seqs or HF_BATCH[device.type],
        on_cpu=on_cpu,
        on_start=on_start,
        on_begin=on_begin,
        grammars=Grammars(inputs.processor.tokenizer, loaded.eos_token_ids, loaded.vocab_size),
    )


def freeze_loaded(engine: Engine) -> None:
    """Leave what is loaded by now out of garbage collections, in a process that is ours alone.

    To look through all of it takes a quarter of a second, in which nothing is launched. That is not
    done here either: loading leaves no garbage behind.
    """
    if engine.device.type == "cuda":
        gc.freeze()


def composed(replica: Replica, model: ModelConfig | HfConfig, tokenizer: Tokenizer) -> Replica:
    """``replica`` for rows that take several requests: of classes, answers or attempts."""
    ends = () if isinstance(model, HfConfig) else model.eos_token_ids
    scorer = ChoiceScorer(tokenizer, ends)
    return ComposedReplica(replica, (scorer.compose, several_answers))
