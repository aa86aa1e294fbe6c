"""Safetensors files of random weights, for processes that load a checkpoint as any run does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vlmbatch.attention import make_backend
from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.models.config import ModelConfig
from vlmbatch.models.family import load_processor
from vlmbatch.models.registry import random_model
from vlmbatch.models.weights import weight_slots

_SHARD_BYTES = 4 * 2**30


def write_random_weights(
    folder: Path, config: ModelConfig, device: torch.device, dtype: torch.dtype
) -> None:
    """Write safetensors files of random weights, made on ``device``, into a checkpoint folder."""
    backend = make_backend("torch", device.type)
    images = load_processor(folder, config, PromptConfig(), ImageArguments()).images
    model = random_model(config, images, device, dtype, backend)
    assert isinstance(model, nn.Module)
    weight_map: dict[str, str] = {}
    tensors = ((name, slot.target) for name, slot in weight_slots(model))
    for number, shard in enumerate(_shards(tensors), start=1):
        file = f"model-{number:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    del model, tensors
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _shards(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Copies of the tensors on the host, in groups of bounded size."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        shard[name] = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
        size += tensor.nbytes
        if size >= _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard
