"""Our model of a checkpoint whose images vary in size, driven without an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from paged_logits import paged_logits
from PIL import Image
from torch import Tensor

from vlmbatch.attention import make_backend
from vlmbatch.attention.base import AttentionBackend
from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.models.family import load_model_config, load_processor
from vlmbatch.models.processor import EncodedPrompt, Processor
from vlmbatch.models.registry import load_model
from vlmbatch.types import ImageGrid, ImageRef, PixelImage, Row


@dataclass
class FamilyOurs:
    """``rows``: prompts and the names of their images, ``sizes`` (width, height) of those."""

    model: Any
    processor: Processor
    backend: AttentionBackend
    device: torch.device

    rows: ClassVar[Sequence[tuple[str, list[str]]]]
    sizes: ClassVar[Mapping[str, tuple[int, int]]]
    image_token_id: ClassVar[int]

    @classmethod
    def load(
        cls,
        folder: Path,
        backend_name: str = "torch",
        device_name: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        config = load_model_config(folder)
        processor = load_processor(folder, config, PromptConfig(), ImageArguments())
        device, backend = torch.device(device_name), make_backend(backend_name, device_name, dtype)
        model = load_model(folder, config, processor.images, device, dtype, backend)
        return cls(model, processor, backend, device)

    def images(self, folder: Path, names: list[str]) -> list[PixelImage]:
        """As those of one row."""
        images = self.processor.images.at(None, len(names))
        return [images.process(Image.open(folder / f"{name}.png")) for name in names]

    def pixels(self, folder: Path, names: list[str]) -> tuple[list[Tensor], list[ImageGrid]]:
        """Of the images of one row, on the model's device, with their grids."""
        images = self.images(folder, names)
        pixels = [torch.from_numpy(image.pixels).to(self.device) for image in images]
        return pixels, [image.grid for image in images]

    def features(self, folder: Path, names: list[str]) -> list[Tensor]:
        return self.model.encode_images(*self.pixels(folder, names))

    def encoded(self, prompt: str, names: list[str]) -> EncodedPrompt:
        row = Row(0, "0", 1, "", prompt=prompt, images=(ImageRef("some"),) * len(names))
        images = self.processor.images.at(None, len(names))
        grids = [images.grid(*self.sizes[name][::-1]) for name in names]
        return self.processor.place(self.processor.tokenize(row), grids)

    def logits(self, folder: Path, chunk: int) -> list[Tensor]:
        """Of all rows (tokens, V), side by side over a shuffled pool, ``chunk`` tokens a step."""
        prompts = [self.encoded(*row) for row in self.rows]
        features = [self.features(folder, names) if names else [] for _, names in self.rows]
        return paged_logits(self.model, self.backend, prompts, features, self.image_token_id, chunk)
