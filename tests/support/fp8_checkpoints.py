"""A checkpoint's decoder in FP8 in the published formats, by hand, and the same numbers in float32.

Nothing here is of the code under test: scales and blocks are made as the formats describe them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Format = Literal["compressed-tensors", "fp8"]

SCALES: dict[str, str] = {"compressed-tensors": "weight_scale", "fp8": "weight_scale_inv"}
_LAYER = re.compile(r"(?!.*(?:visual|vision)).*\.layers\.\d+\.(?:self_attn|mlp)\.\w+_proj\.weight$")


def write_fp8(
    source: Path,
    folder: Path,
    kind: Format,
    *,
    kept: Sequence[str] = (),
    ignore: Sequence[str] = ("lm_head", "re:.*(visual|vision_tower).*"),
    scale_dtype: torch.dtype = torch.float32,
) -> tuple[Path, Path]:
    """Write ``source`` as an FP8 checkpoint and as one of float32 with the same numbers.

    ``kept``: parts of names of layers that stay as they are. ``ignore``: what the config says of
    layers that do. Returns both folders, which are in ``folder``.
    """
    tensors = load_file(source / "model.safetensors")
    quantized, plain = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        if _LAYER.match(name) is None or any(part in name for part in kept):
            continue
        divide = _channels if kind == "compressed-tensors" else _blocks
        values, scales, same = divide(weight)
        scales = scales.to(scale_dtype)
        quantized[name] = values
        quantized[name.removesuffix("weight") + SCALES[kind]] = scales
        plain[name] = values.float() * same(scales.float())
    assert len(quantized) > len(tensors)
    config = json.loads((source / "config.json").read_text())
    settings = {"compressed-tensors": compressed, "fp8": blocked}[kind](ignore)
    folders = folder / "fp8", folder / "float32"
    for target, contents in zip(folders, (quantized, plain), strict=True):
        shutil.copytree(source, target)
        save_file(contents, target / "model.safetensors", metadata={"format": "pt"})
    (folders[0] / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return folders


def compressed(ignore: Sequence[str] = ()) -> dict[str, Any]:
    """The ``quantization_config`` of compressed-tensors' FP8 dynamic."""
    common = {"num_bits": 8, "type": "float", "symmetric": True, "group_size": None}
    group = {
        "targets": ["Linear"],
        "weights": {**common, "strategy": "channel", "dynamic": False, "observer": "minmax"},
        "input_activations": {**common, "strategy": "token", "dynamic": True, "observer": None},
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "kv_cache_scheme": None,
        "ignore": list(ignore),
    }


def blocked(ignore: Sequence[str] = ()) -> dict[str, Any]:
    """The ``quantization_config`` of blocks of 128x128."""
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": list(ignore),
    }


def changed(settings: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with ``value`` at a dotted path."""
    copy = json.loads(json.dumps(settings))
    *parents, last = path.split(".")
    section = copy
    for name in parents:
        section = section[name]
    section[last] = value
    return copy


def _channels(weight: Tensor) -> tuple[Tensor, Tensor, Any]:
    scales = weight.abs().amax(1, keepdim=True) / 448
    return (weight / scales).to(torch.float8_e4m3fn), scales, lambda scales: scales


def _blocks(weight: Tensor) -> tuple[Tensor, Tensor, Any]:
    rows, columns = (-(-size // 128) for size in weight.shape)
    scales = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            block = weight[row * 128 : (row + 1) * 128, column * 128 : (column + 1) * 128]
            scales[row, column] = block.abs().max() / 448

    def same(scales: Tensor) -> Tensor:
        row, column = (torch.arange(size) // 128 for size in weight.shape)
        return scales[row[:, None], column]

    return (weight / same(scales)).to(torch.float8_e4m3fn), scales, same
