"""What torchvision is asked for, and what is made of what it gives, refuses or passes over."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from encoding import encoded
from fake_torchvision import Decode, FakeTorchvision, pixels_of
from PIL import Image
from torch import Tensor

from vlmbatch.images.jpeg import PlainJpeg
from vlmbatch.nvjpeg.decoder import NvJpegDecoder
from vlmbatch.nvjpeg.tensor_image import TensorImage


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
        np.testing.assert_array_equal(image, expected)


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


def test_what_memory_held_before_is_no_image(
    torchvision: FakeTorchvision, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = NvJpegDecoder("cpu")
    held: list[Tensor] = []
    empty = torch.empty

    def with_other_images(size: Any, **options: Any) -> Tensor:
        memory = empty(size, **options).random_(0, 256)
        held.append(memory)
        return memory

    monkeypatch.setattr(torch, "empty", with_other_images)
    torchvision.decode = lambda _: held.pop(0)  # the second one is passed over
    files = [plain(0), plain(1)]
    assert decoder.decode(files) == [None, None]
    assert held  # what lines are read to


def test_a_black_image_is_decoded(torchvision: FakeTorchvision) -> None:
    decoder = NvJpegDecoder("cpu")
    black = encoded(Image.new("RGB", (30, 20)), "JPEG")
    (image,) = checked(decoder.decode([PlainJpeg(black, 20, 30, None)]))
    assert not np.asarray(image).any()


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
