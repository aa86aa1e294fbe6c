"""What torchvision is asked for, and what is made of what it gives, refuses or passes over."""

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
from encoding import encoded
from PIL import Image
from torch import Tensor

from vlmbatch.images.jpeg import PlainJpeg
from vlmbatch.nvjpeg.decoder import NvJpegDecoder
from vlmbatch.nvjpeg.tensor_image import TensorImage

Decode = Callable[[bytes], Tensor]


def pixels_of(data: bytes) -> Tensor:
    image = Image.open(io.BytesIO(data))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


class FakeTorchvision:
    """Its ``decode_jpeg`` by Pillow; a file that says REFUSE makes the whole batch fail."""

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


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> FakeTorchvision:
    fake = FakeTorchvision()
    module: Any = types.ModuleType("torchvision.io")
    module.decode_jpeg = fake.decode_jpeg
    module.ImageReadMode = types.SimpleNamespace(RGB="RGB, please")
    package = types.ModuleType("torchvision")
    package.__spec__ = ModuleSpec("torchvision", None)  # without its library
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.io", module)
    return fake


def plain(value: int, orientation: int | None = None, **options: Any) -> PlainJpeg:
    values = np.random.default_rng(value).integers(0, 256, (20, 30 + value, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(values), "JPEG", quality=95, **options)
    return PlainJpeg(data, 20, 30 + value, orientation)


def checked(images: Sequence[TensorImage | None]) -> list[TensorImage]:
    assert all(image is not None for image in images)
    return [image for image in images if image is not None]


def test_a_batch_is_decoded_at_once_and_turned(torchvision: FakeTorchvision) -> None:
    decoder = NvJpegDecoder("cpu")
    files = [plain(0), plain(1, 6), plain(2, 3)]
    images = checked(decoder.decode(files))
    assert torchvision.batches == [1, 3]  # the first one to load what it takes
    for image, file in zip(images, files, strict=True):
        expected = TensorImage(pixels_of(file.data)).upright(file.orientation)
        assert torch.equal(image.pixels, expected.pixels)


def test_what_is_refused_costs_no_other_file(torchvision: FakeTorchvision) -> None:
    decoder = NvJpegDecoder("cpu")
    images = decoder.decode([plain(0), plain(1, comment=b"REFUSE"), plain(2)])
    assert [image is None for image in images] == [False, True, False]
    assert torchvision.batches[1:] == [3, 1, 1, 1]


@pytest.mark.parametrize(
    "decode",
    [
        lambda data: torch.ones_like(pixels_of(data)),  # as memory was before
        lambda data: pixels_of(data)[:, :-1],
    ],
    ids=["passed over", "of another size"],
)
def test_what_is_not_decoded_as_it_should_is_left_to_others(
    torchvision: FakeTorchvision, decode: Decode
) -> None:
    decoder = NvJpegDecoder("cpu")
    torchvision.decode = decode
    assert decoder.decode([plain(0), plain(1)]) == [None, None]


def test_a_black_image_is_decoded(torchvision: FakeTorchvision) -> None:
    decoder = NvJpegDecoder("cpu")
    black = encoded(Image.new("RGB", (30, 20)), "JPEG")
    (image,) = checked(decoder.decode([PlainJpeg(black, 20, 30, None)]))
    assert not image.pixels.any()


def test_a_device_that_is_lost_is_no_refusal(
    torchvision: FakeTorchvision, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = NvJpegDecoder("cpu")

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(decoder, "_synchronize", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        decoder.decode([plain(1)])


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    with pytest.raises(ImportError):
        NvJpegDecoder("cpu")
