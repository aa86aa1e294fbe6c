"""Our model of a Qwen-VL checkpoint, without an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from paged_logits import paged_logits
from PIL import Image
from qwen_vl_case import ROWS, SIZES, Case
from qwen_vl_checkpoints import IMAGE_TOKEN_ID
from torch import Tensor

from vlmbatch.attention import make_backend
from vlmbatch.attention.base import AttentionBackend
from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.models.family import EncodedPrompt, load_model_config, load_processor
from vlmbatch.models.qwen_vl.model import Model
from vlmbatch.models.qwen_vl.processor import QwenVLProcessor
from vlmbatch.models.registry import load_model
from vlmbatch.types import ImageGrid, ImageRef, Row


@dataclass
class Ours:
    model: Model
    processor: QwenVLProcessor
    backend: AttentionBackend
    device: torch.device

    @classmethod
    def load(
        cls,
        folder: Path,
        backend_name: str = "torch",
        device_name: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Ours:
        config = load_model_config(folder)
        processor = load_processor(folder, config, PromptConfig(), ImageArguments())
        assert isinstance(processor, QwenVLProcessor)
        device, backend = torch.device(device_name), make_backend(backend_name, device_name, dtype)
        model = load_model(folder, config, processor.images, device, dtype, backend)
        assert isinstance(model, Model)
        return cls(model, processor, backend, device)

    def features(self, folder: Path, names: list[str]) -> list[Tensor]:
        return self.model.encode_images(*self.pixels(folder, names))

    def pixels(self, folder: Path, names: list[str]) -> tuple[list[Tensor], list[ImageGrid]]:
        """Of images, on the model's device, with their grids."""
        assert self.processor.images is not None
        images = [
            self.processor.images.process(Image.open(folder / f"{name}.png")) for name in names
        ]
        pixels = [torch.from_numpy(image.pixels).to(self.device) for image in images]
        return pixels, [image.grid for image in images]

    def encoded(self, prompt: str, names: list[str]) -> EncodedPrompt:
        assert self.processor.images is not None
        row = Row(0, "0", 1, "", prompt=prompt, images=(ImageRef("some"),) * len(names))
        grids = [self.processor.images.grid(*SIZES[name][::-1]) for name in names]
        return self.processor.place(self.processor.tokenize(row), grids)

    def logits(self, case: Case, chunk: int) -> list[Tensor]:
        """Of all rows (tokens, V), side by side over a shuffled pool, ``chunk`` tokens a step."""
        folder = case.manifest.parent
        prompts = [self.encoded(*row) for row in ROWS]
        features = [self.features(folder, names) if names else [] for _, names in ROWS]
        return paged_logits(self.model, self.backend, prompts, features, IMAGE_TOKEN_ID, chunk)
