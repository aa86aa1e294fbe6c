"""From an architecture's name to a model with its weights."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlmbatch.attention.base import AttentionBackend
from vlmbatch.errors import CheckpointError
from vlmbatch.models.config import ModelConfig
from vlmbatch.models.parallel import SINGLE_DEVICE, ParallelContext
from vlmbatch.models.weights import load_weights, materialise, random_weights

if TYPE_CHECKING:
    from vlmbatch.models.llava import LlavaForConditionalGeneration

_MODULES = {"LlavaForConditionalGeneration": "vlmbatch.models.llava"}


def build_model(
    config: ModelConfig,
    image_scale: tuple[float, ...],
    image_bias: tuple[float, ...],
    backend: AttentionBackend,
    parallel: ParallelContext = SINGLE_DEVICE,
) -> LlavaForConditionalGeneration:
    """Build the model that ``config`` describes on the meta device, without memory for weights.

    ``image_scale`` and ``image_bias``: for each channel, what makes pixels of 0..255 the tower's.

    Raises:
        CheckpointError: an unsupported architecture.
        ConfigError: the model cannot be divided over the devices of ``parallel``.
    """
    if config.architecture not in _MODULES:
        supported = ", ".join(_MODULES)
        raise CheckpointError(
            f"architecture {config.architecture!r} is not supported; supported are: {supported}"
        )
    module = import_module(_MODULES[config.architecture])
    with torch.device("meta"):
        model: LlavaForConditionalGeneration = getattr(module, config.architecture)(
            config, image_scale, image_bias, backend, parallel
        )
    return model


def load_model(
    folder: Path,
    config: ModelConfig,
    image_scale: tuple[float, ...],
    image_bias: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype,
    backend: AttentionBackend,
    parallel: ParallelContext = SINGLE_DEVICE,
) -> LlavaForConditionalGeneration:
    """Build the model and fill it from the safetensors files of ``folder``.

    Raises:
        CheckpointError: an unsupported architecture, or weights that do not fit.
        ConfigError: the model cannot be divided over the devices of ``parallel``.
    """
    model = build_model(config, image_scale, image_bias, backend, parallel)
    load_weights(model, folder, device, dtype)
    return model


def random_model(
    config: ModelConfig,
    image_scale: tuple[float, ...],
    image_bias: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype,
    backend: AttentionBackend,
    parallel: ParallelContext = SINGLE_DEVICE,
) -> LlavaForConditionalGeneration:
    """Build the model with random weights, made on ``device``: as fast as a real one.

    Raises:
        CheckpointError: an unsupported architecture.
        ConfigError: the model cannot be divided over the devices of ``parallel``.
    """
    model = build_model(config, image_scale, image_bias, backend, parallel)
    materialise(model, device, dtype)
    random_weights(model, seed=0)
    return model
