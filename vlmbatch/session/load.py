"""The engine and what decodes images beside it, loaded for a run, the Python API or the server."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from vlmbatch.config import SessionConfig
from vlmbatch.session.cores import default_cpu_threads, default_image_workers
from vlmbatch.session.open import ModelInputs, open_images

if TYPE_CHECKING:
    from vlmbatch.engine.engine import Engine
    from vlmbatch.images.loading.loader import ImageLoader

# Beside a GPU, a thread that wants the interpreter lock gets it after so long from one that only
# computes: the default of 5 ms is a whole decode step.
SWITCH_INTERVAL_S = 0.001


def start_images(config: SessionConfig, inputs: ModelInputs) -> ImageLoader:
    """What decodes images beside an engine that is yet to be loaded: processes start meanwhile.

    Raises:
        ConfigError: the device is not to be had here.
    """
    num_workers = config.image_loading.workers
    if num_workers is None:
        from vlmbatch.engine.loading import resolve_device

        on_cpu = resolve_device(config.engine.device).type == "cpu"
        num_workers = default_image_workers(engine_on_cpu=on_cpu)
    return open_images(config, inputs, num_workers)


def load_engine(config: SessionConfig, inputs: ModelInputs) -> Engine:
    """Load the weights onto the device and build the engine around them."""
    from vlmbatch.engine.loading import build_engine

    settings = config.engine
    if settings.cpu_threads is None:
        settings = replace(settings, cpu_threads=default_cpu_threads())
    engine = build_engine(inputs.folder, inputs.model, settings, inputs.processor)
    if engine.device.type == "cuda":
        sys.setswitchinterval(SWITCH_INTERVAL_S)
    return engine


def freeze_loaded(engine: Engine) -> None:
    """Leave what is loaded by now out of garbage collections, in a process that is ours alone.

    To look through all of it takes a quarter of a second, in which nothing is launched.
    """
    if engine.device.type == "cuda":
        gc.collect()
        gc.freeze()
