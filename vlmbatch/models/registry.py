"""From an architecture's name to a model with its weights."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from vlmbatch.attention.base import AttentionBackend
from vlmbatch.errors import CheckpointError
from vlmbatch.models.config import ModelConfig
from vlmbatch.models.parallel import SINGLE_DEVICE, ParallelContext
from vlmbatch.models.weights import load_weights, materialise, random_weights

if TYPE_CHECKING:
    from vlmbatch.models.llava import LlavaForConditionalGeneration, LlavaVision

_MODULES = {"LlavaForConditionalGeneration": "vlmbatch.models.llava"}
_VISION = {"LlavaForConditionalGeneration": "LlavaVision"}  # the part that looks at pixels


def build_model(
    config: ModelConfig,
    image_scale: tuple[float, ...] | None,
    image_bias: tuple[float, ...] | None,
    backend: AttentionBackend,
    parallel: ParallelContext = SINGLE_DEVICE,
) -> LlavaForConditionalGeneration:
    """Build the model that ``config`` describes on the meta device, without memory for weights.

    ``image_scale`` and ``image_bias``: for each channel, what makes pixels of 0..255 the tower's;
    None for a model without a tower, which is given features.

    Raises:
        CheckpointError: an unsupported architecture.
        ConfigError: the model cannot be divided over the devices of ``parallel``.
    """
    module = _module(config)
    with torch.device("meta"):
        model: LlavaForConditionalGeneration = getattr(module, config.architecture)(
            config, image_scale, image_bias, backend, parallel
        )
    return model


def load_vision(
    folder: Path,
    config: ModelConfig,
    image_scale: tuple[float, ...],
    image_bias: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype,
    backend: AttentionBackend,
) -> LlavaVision:
    """Build only the part of the model that turns pixels into features, with its weights.

    Raises:
        CheckpointError: an unsupported architecture, or weights that do not fit.
    """
    module = _module(config)
    with torch.device("meta"):
        vision: LlavaVision = getattr(module, _VISION[config.architecture])(
            config, image_scale, image_bias, backend, SINGLE_DEVICE
        )
    load_weights(vision, folder, device, dtype)
    return vision


def load_model(
    folder: Path,
    config: ModelConfig,
    image_scale: tuple[float, ...] | None,
    image_bias: tuple[float, ...] | None,
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
    image_scale: tuple[float, ...] | None,
    image_bias: tuple[float, ...] | None,
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


def _module(config: ModelConfig) -> ModuleType:
    if config.architecture not in _MODULES:
        supported = ", ".join(_MODULES)
        raise CheckpointError(
            f"architecture {config.architecture!r} is not supported; supported are: {supported}"
        )
    return import_module(_MODULES[config.architecture])
