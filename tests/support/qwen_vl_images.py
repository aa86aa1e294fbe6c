"""Qwen-VL's image processing, and transformers' beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from vlmbatch_kernels.image_patches import normalize_patches

from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.preprocessor_config import Normalization
from vlmbatch.models.qwen_vl.image_processor import QwenImageProcessor
from vlmbatch.models.qwen_vl.packing import Packing
from vlmbatch.models.qwen_vl.vision_config import VisionConfig, parse_vision_config


def vision_of(kind: str) -> VisionConfig:
    return parse_vision_config(kind, JsonFields({}, "vision_config"))


def loaded(folder: Path, fields: dict[str, Any], kind: str = "qwen2_vl") -> QwenImageProcessor:
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return QwenImageProcessor.load(folder, vision_of(kind))


def processor(factor: int, limits: tuple[int, int]) -> QwenImageProcessor:
    ones = (1.0, 1.0, 1.0)
    normalization = Normalization(1 / 255, ones, ones)
    return QwenImageProcessor(factor, *limits, Image.Resampling.BICUBIC, normalization)


def assert_equal_patches(kind: str, ours: QwenImageProcessor, mine: Image.Image, made: Any) -> None:
    """The pixels of ``mine`` and what transformers has made of its image: the same patches."""
    prepared = ours.process(mine)
    assert prepared.grid == ours.grid(mine.height, mine.width)
    patch = vision_of(kind).patch_size
    pixels = torch.from_numpy(prepared.pixels)
    scale, bias = torch.tensor(ours.normalization.scale), torch.tensor(ours.normalization.bias)
    rows = normalize_patches(pixels[None], scale, bias, patch, torch.float32)[0, :, : 3 * patch**2]
    height, width = (side // patch for side in prepared.pixels.shape[:2])
    assert made["image_grid_thw"].tolist() == [[1, height, width]]
    # As they come without windows, which only the model sees.
    order = Packing.of([(height, width)], vision_of("qwen2_vl")).patches
    frames = made["pixel_values"].view(len(rows), 3, 2, patch, patch).unbind(2)
    patches = rows[torch.from_numpy(order)].view(-1, patch, patch, 3).permute(0, 3, 1, 2)
    for frame in frames:
        torch.testing.assert_close(patches, frame, atol=1e-5, rtol=0)


def theirs_of(fields: dict[str, Any], **limits: int) -> Qwen2VLImageProcessorPil:
    names = {"image_processor_type", *limits}
    return Qwen2VLImageProcessorPil(
        **{name: value for name, value in fields.items() if name not in names}, **limits
    )
