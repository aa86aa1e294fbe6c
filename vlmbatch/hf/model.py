"""A checkpoint's own class in transformers, with its weights. Never its own Python code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from vlmbatch.errors import CheckpointError, ConfigError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.hf.generation import BatchGenerator, greedy_config
from vlmbatch.hf.library import config_failures, shown


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device. ``eos_token_ids`` end an answer."""

    generator: BatchGenerator
    eos_token_ids: frozenset[int]


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
            f"the GPU: {shown(error)}"
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
    return LoadedModel(BatchGenerator(model, device, dtype, pad_token_id), eos_token_ids)


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
