"""From a model's configuration to the model with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from vlmbatch.attention.base import AttentionBackend
from vlmbatch.models.config import ModelConfig
from vlmbatch.models.family import family_of
from vlmbatch.models.linear import quantize_layers
from vlmbatch.models.parallel import SINGLE_DEVICE, ParallelContext
from vlmbatch.models.processor import ImageProcessor
from vlmbatch.models.text_model import TextModel
from vlmbatch.models.vision_language_model import VisionLanguageModel, VisionModel
from vlmbatch.models.weights import CheckpointModel, load_weights, materialise, random_weights


def build_model(
    config: ModelConfig,
    images: ImageProcessor | None,
    backend: AttentionBackend,
    parallel: ParallelContext = SINGLE_DEVICE,
    *,
    vision_only: bool = False,
) -> CheckpointModel:
    """Build the model that ``config`` describes on the meta device, without memory for weights.

    ``images``: the family's own, which knows what makes pixels the tower's input; None for a model
    without a tower, which is given features. ``vision_only``: only what turns pixels into features.

    Raises:
        ConfigError: the model cannot be divided over the devices of ``parallel``.
        CheckpointError: layers that are one product are not quantized alike.
    """
    with torch.device("meta"):
        model = family_of(config).build(config, images, backend, parallel, vision_only=vision_only)
        if config.quantization is not None and isinstance(model, TextModel):
            quantize_layers(model.language_model, "language_model", config.quantization)
    return model


def load_vision(
    folder: Path,
    config: ModelConfig,
    images: ImageProcessor,
    device: torch.device,
    dtype: torch.dtype,
    backend: AttentionBackend,
) -> VisionModel:
    """Build only the part of the model that turns pixels into features, with its weights.

    Raises:
        CheckpointError: weights that do not fit.
    """
    vision = build_model(config, images, backend, vision_only=True)
    load_weights(vision, folder, device, dtype)
    return cast(VisionModel, vision)


def load_model(
    folder: Path,
    config: ModelConfig,
    images: ImageProcessor | None,
    device: torch.device,
    dtype: torch.dtype,
    backend: AttentionBackend,
    parallel: ParallelContext = SINGLE_DEVICE,
) -> VisionLanguageModel:
    """Build the model and fill it from the safetensors files of ``folder``.

    Raises:
        CheckpointError: weights that do not fit.
        ConfigError: the model cannot be divided over the devices of ``parallel``.
    """
    model = build_model(config, images, backend, parallel)
    load_weights(model, folder, device, dtype)
    return cast(VisionLanguageModel, model)


def random_model(
    config: ModelConfig,
    images: ImageProcessor | None,
    device: torch.device,
    dtype: torch.dtype,
    backend: AttentionBackend,
    parallel: ParallelContext = SINGLE_DEVICE,
) -> VisionLanguageModel:
    """Build the model with random weights, made on ``device``: as fast as a real one.

    Raises:
        ConfigError: the model cannot be divided over the devices of ``parallel``.
    """
    model = build_model(config, images, backend, parallel)
    materialise(model, device, dtype)
    random_weights(model, seed=0)
    return cast(VisionLanguageModel, model)
