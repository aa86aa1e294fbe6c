"""Checkpoint tensors into a model: everything is checked first, then copied tensor by tensor."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vlmbatch.errors import CheckpointError
from vlmbatch.models import git_lfs
from vlmbatch.models.fp8 import Fp8Weight
from vlmbatch.models.layers import DerivedBuffers, RMSNorm
from vlmbatch.models.linear import ColumnLinear, RowLinear
from vlmbatch.models.pinned_loader import load_from_files
from vlmbatch.models.stored_tensor import StoredTensor, stored_tensors
from vlmbatch.models.weight_slot import WeightSlot

_FLOAT_DTYPES = {"F64", "F32", "F16", "BF16"}
_E4M3 = "F8_E4M3"
_MAX_PROBLEMS = 10
_RANDOM_E4M3_STD = 64.0  # so that e4m3's range holds seven deviations


class CheckpointModel(nn.Module, ABC):
    """A model that is filled from a published checkpoint."""

    @staticmethod
    @abstractmethod
    def parameter_name(tensor_name: str) -> str:
        """Return the model's name of a checkpoint tensor, whichever layout it comes from."""

    @abstractmethod
    def is_unused(self, name: str) -> bool:
        """Whether checkpoints hold a tensor, by the model's name, that it has no use for."""


def load_weights(
    model: CheckpointModel, folder: Path, device: torch.device, dtype: torch.dtype
) -> None:
    """Materialise ``model`` on ``device`` in ``dtype`` and fill it from ``folder``.

    Raises:
        CheckpointError: no safetensors files, a corrupt one, or tensors that are missing, left
            over, duplicate, of the wrong shape or not floating point; up to ten are named. Files
            that cannot be read, or become shorter meanwhile. Scales
            that are not positive, or weights to quantize that are not finite; the first is named.
    """
    with _open_shards(folder) as shards:
        tensors = _check(model, shards)
        materialise(model, device, dtype)
        slots = dict(weight_slots(model))
        with torch.inference_mode():
            for name, (shard, tensor_name) in tensors.items():
                if slots[name].is_scale:
                    _check_scales(tensor_name, shard.mapped.get_tensor(tensor_name))
            if device.type == "cuda":
                places = [(each.stored[own], slots[name]) for name, (each, own) in tensors.items()]
                # In the order of the files: a disk reads ahead.
                places.sort(key=lambda place: (place[0].file.fileno(), place[0].offset))
                load_from_files(places, device)
            else:
                for name, (shard, tensor_name) in tensors.items():
                    slots[name].load(shard.mapped.get_tensor(tensor_name))  # read while copied
            _check_quantized(slots)


def describe_weights(folder: Path) -> str:
    """The safetensors files of a checkpoint in words that differ when the files do.

    Raises:
        CheckpointError: there are none, or one is missing.
    """
    files = [folder / file for file in _shard_files(folder)]
    try:
        found = [file.stat() for file in files]
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from error
    size, changed = sum(each.st_size for each in found), max(each.st_mtime for each in found)
    plural = "s" if len(files) > 1 else ""
    return f"{len(files)} file{plural} of {size:,} bytes, changed at {changed:.3f}"


def random_weights(model: nn.Module, seed: int, std: float = 0.02) -> None:
    """Fill a materialised model with normal numbers, and normalisation weights with ones."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for module in model.modules():
        if isinstance(module, Fp8Weight):
            wide = torch.empty_like(module.values, dtype=torch.bfloat16)
            module.values.copy_(nn.init.normal_(wide, std=_RANDOM_E4M3_STD, generator=generator))
            nn.init.constant_(module.scales, std / _RANDOM_E4M3_STD)
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight" and isinstance(module, (RMSNorm, nn.LayerNorm)):
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=std, generator=generator)


def materialise(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give a model from the meta device its memory; parameters are left uninitialised."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # to_empty would do, if it did not import half a second of symbolic algebra.
            own = parameter.dtype if isinstance(module, Fp8Weight) else dtype
            empty = torch.empty(parameter.shape, dtype=own, device=device)
            setattr(module, name, nn.Parameter(empty, requires_grad=False))
        if isinstance(module, DerivedBuffers):
            module.fill_buffers(device, dtype)


def weight_slots(model: nn.Module) -> Iterator[tuple[str, WeightSlot]]:
    """Every tensor that the model takes from a checkpoint, by its name there (see the model)."""
    for path, module in model.named_modules():
        if isinstance(module, (ColumnLinear, RowLinear)):
            yield from module.weight_slots(path)
        elif not isinstance(module, Fp8Weight):  # of one of those
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{path}.{name}", WeightSlot(parameter)


@dataclass(frozen=True)
class _Shard:
    """An open safetensors file: mapped by the library, and where in it tensors lie."""

    mapped: Any
    file: BinaryIO

    @cached_property
    def stored(self) -> dict[str, StoredTensor]:
        return stored_tensors(self.file)


def _check(model: CheckpointModel, shards: dict[str, _Shard]) -> dict[str, tuple[_Shard, str]]:
    """Match the tensors of all shards with the model's slots by name, shape and dtype."""
    slots = dict(weight_slots(model))
    found: dict[str, tuple[_Shard, str]] = {}
    problems = []
    for file, shard in shards.items():
        for tensor_name in shard.mapped.keys():  # noqa: SIM118  (not a mapping)
            name = model.parameter_name(tensor_name)
            if name in found:
                problems.append(f"duplicate: {tensor_name} in {file}, also {found[name][1]}")
            elif name in slots:
                found[name] = (shard, tensor_name)
                tensor = shard.mapped.get_slice(tensor_name)
                shape, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
                if shape != slots[name].shape:
                    expected = slots[name].shape
                    problems.append(f"shape of {tensor_name}: expected {expected}, found {shape}")
                if slots[name].stores_e4m3:
                    if dtype != _E4M3:
                        problems.append(f"dtype of {tensor_name}: expected {_E4M3}, found {dtype}")
                elif dtype not in _FLOAT_DTYPES:
                    problems.append(f"dtype of {tensor_name}: expected a float, found {dtype}")
            elif not model.is_unused(name):
                problems.append(f"left over: {tensor_name} in {file}")
    missing = [f"missing: {name}" for name in slots if name not in found]
    if problems := missing + problems:
        shown = problems[:_MAX_PROBLEMS]
        if len(problems) > len(shown):
            shown.append(f"... and {len(problems) - len(shown)} more")
        raise CheckpointError(
            "the weights do not fit the model that config.json describes:\n  " + "\n  ".join(shown)
        )
    return found


def _check_scales(name: str, scales: Tensor) -> None:
    """Refuse scales that are not positive numbers of float32."""
    wide = scales.float()
    wrong = ~(torch.isfinite(wide) & (wide > 0))
    if wrong.any():
        raise CheckpointError(
            f"{name}: {int(wrong.sum())} of {scales.numel()} scales are not positive and finite, "
            f"the first of them {scales[wrong][0].item()}"
        )


def _check_quantized(slots: Mapping[str, WeightSlot]) -> None:
    """Refuse what has been quantized of numbers that are not finite."""
    for name, slot in slots.items():
        if slot.row_scales is not None and not torch.isfinite(slot.row_scales).all():
            raise CheckpointError(f"{name}: not all weights are finite, and cannot be quantized")


@contextmanager
def _open_shards(folder: Path) -> Iterator[dict[str, _Shard]]:
    """Open the folder's safetensors files, by name."""
    with ExitStack() as stack:
        shards = {}
        for file in _shard_files(folder):
            path = folder / file
            try:  # safe_open calls a file that it may not read missing
                opened = stack.enter_context(path.open("rb"))
            except OSError as error:
                raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
            if git_lfs.is_pointer(os.pread(opened.fileno(), 64, 0)):
                raise CheckpointError(f"{path} is {git_lfs.IS_POINTER}")
            try:
                mapped = stack.enter_context(safe_open(_utf8_path(path, opened), "pt"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} cannot be read as safetensors ({error}); fetch the file again"
                ) from error
            shards[file] = _Shard(mapped, opened)
        yield shards


def _utf8_path(path: Path, opened: BinaryIO) -> str:
    """A path of an open file that safetensors takes, which wants UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return f"/proc/self/fd/{opened.fileno()}"
    return str(path)


def _shard_files(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        return ["model.safetensors"]
    if index.exists():
        return _indexed_files(index)
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({', '.join(pickles[:3])}), which can run code "
            "when they are read; convert them to safetensors with save_pretrained of transformers"
        )
    raise CheckpointError(
        f"no weights in {folder}: expected model.safetensors or model.safetensors.index.json"
    )


def _indexed_files(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is not a safetensors index: expected a JSON object with weight_map"
        ) from error
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index} names {file!r}: expected a file name in its own folder")
        try:
            missing = not (index.parent / file).exists()
        except OSError as error:
            raise CheckpointError(
                f"{index} names {file[:100]!r}, which no file can be called: {error.strerror}"
            ) from error
        if missing:
            raise CheckpointError(f"{index.parent / file} is missing: {index.name} names it")
    return files
