"""torchvision without a GPU: its decoder is Pillow."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

Decode = Callable[[bytes], Tensor]


def pixels_of(data: bytes) -> Tensor:
    """(3, height, width) uint8."""
    image = Image.open(io.BytesIO(data))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


class FakeTorchvision:
    """``decode``: a file's pixels; a file that says REFUSE makes the whole batch fail.

    ``batches``: numbers of files that it was given together.
    """

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.decode: Decode = pixels_of

    def decode_jpeg(
        self, files: Sequence[Tensor], mode: object, device: torch.device
    ) -> list[Tensor]:
        assert mode == "RGB, please"
        self.batches.append(len(files))
        data = [bytes(file.tolist()) for file in files]
        if any(b"REFUSE" in each for each in data):
            raise RuntimeError("Failed to decode batch: 4")
        return [self.decode(each).to(device) for each in data]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be what is imported as torchvision."""
        module: Any = types.ModuleType("torchvision.io")
        module.decode_jpeg = self.decode_jpeg
        module.ImageReadMode = types.SimpleNamespace(RGB="RGB, please")
        package = types.ModuleType("torchvision")
        package.__spec__ = ModuleSpec("torchvision", None)  # without its library
        monkeypatch.setitem(sys.modules, "torchvision", package)
        monkeypatch.setitem(sys.modules, "torchvision.io", module)
