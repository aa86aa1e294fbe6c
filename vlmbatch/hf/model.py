"""A checkpoint's own class in transformers, with its weights. Never its own Python code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from vlmbatch.engine.gpu import memory_use
from vlmbatch.errors import CheckpointError, ConfigError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.hf.generation import BatchGenerator, greedy_config
from vlmbatch.hf.library import config_failures, shown
from vlmbatch.models.json_fields import read_json

_MOST_NUMBERS_A_BYTE = 8  # of the smallest types, and tied weights counted twice


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device. ``eos_token_ids`` end an answer; ``vocab_size``: of its logits."""

    generator: BatchGenerator
    eos_token_ids: frozenset[int]
    vocab_size: int


def load_hf_model(
    folder: Path, config: HfConfig, device: torch.device, dtype: torch.dtype
) -> LoadedModel:
    """Load the safetensors files of ``folder``.

    Raises:
        CheckpointError: there are none, or they do not fit the model.
        ConfigError: the weights do not fit into the device's memory.
    """
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder}: no .safetensors file; weights in pickles (.bin, .pt) are never read"
        )
    for name in ("generation_config.json", "model.safetensors.index.json"):
        if (folder / name).exists():
            read_json(folder / name)  # whose errors name the file
    _check_size(folder, config)
    try:
        model, found = AutoModelForImageTextToText.from_pretrained(
            folder,
            config=config.config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which are refused below, by name
        )
        model = model.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the weights in {str(dtype).removeprefix('torch.')} do not fit into the memory of "
            f"the GPU: when it ran out, {memory_use(device)}"
        ) from error
    except config_failures() as error:
        raise CheckpointError(
            f"{folder}: transformers {config.version} cannot load the {config.model_type} "
            f"model: {shown(error)}"
        ) from error
    _check_complete(folder, found)
    eos_token_ids = _eos_token_ids(folder, model)
    pad_token_id = _pad_token_id(model, config, eos_token_ids)
    _set_greedy(model, pad_token_id)
    generator = BatchGenerator(model, device, dtype, pad_token_id, config.image_token_id)
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    return LoadedModel(generator, eos_token_ids, vocab_size)


def _check_size(folder: Path, config: HfConfig) -> None:
    """transformers gives memory to all that the configuration describes before shapes are compared.

    Raises:
        CheckpointError: the model has far more numbers than are stored.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config.config, dtype=torch.float32)
    except config_failures() as error:
        raise CheckpointError(
            f"{folder / 'config.json'}: transformers {config.version} cannot make the model that "
            f"it describes: {shown(error)}"
        ) from error
    wanted = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if wanted > _MOST_NUMBERS_A_BYTE * stored:
        raise CheckpointError(
            f"{folder}: config.json describes a model of {wanted} numbers, but the .safetensors "
            f"files have {stored} bytes in all"
        )


def _check_complete(folder: Path, found: Any) -> None:
    """transformers makes up what is missing; an answer from that would be noise."""
    for name, stored, wanted in sorted(found["mismatched_keys"]):
        raise CheckpointError(
            f"{folder}: {name} is of shape {tuple(stored)}, expected {tuple(wanted)}"
        )
    missing = sorted(found["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{folder}: the weights lack {missing[0]}{more}")


def _eos_token_ids(folder: Path, model: Any) -> frozenset[int]:
    """As ``generate`` would take them: of generation_config.json, else of the configuration."""
    text = model.config.get_text_config(decoder=True)
    for source in (model.generation_config, model.config, text):
        value = getattr(source, "eos_token_id", None)
        if value is not None:
            ids = value if isinstance(value, list | tuple) else [value]
            if not all(isinstance(each, int) for each in ids):
                raise CheckpointError(
                    f"{folder}: eos_token_id is {value!r:.200}, expected an integer or several"
                )
            return frozenset(ids)
    return frozenset()


def _pad_token_id(model: Any, config: HfConfig, eos_token_ids: frozenset[int]) -> int:
    """An id of the vocabulary that stands for no image."""
    text = model.config.get_text_config(decoder=True)
    candidates: list[Any] = [getattr(model.generation_config, "pad_token_id", None)]
    candidates += [getattr(text, "pad_token_id", None), *sorted(eos_token_ids), 0, 1]
    usable = set(range(text.vocab_size)) - {config.image_token_id}
    return next(value for value in candidates if isinstance(value, int) and value in usable)


def _set_greedy(model: Any, pad_token_id: int) -> None:
    """The checkpoint's generation settings would fill in what a row does not ask for."""
    for module in model.modules():
        if getattr(module, "generation_config", None) is not None:
            module.generation_config = greedy_config(pad_token_id)
