"""Batches of photos on their way through a device, which has two bursts of work for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from encoding import encoded
from fake_torchvision import FakeTorchvision
from image_processors import CUBIC, NORMAL, PROCESSORS
from PIL import Image
from torch import Tensor
from vlmbatch_kernels.resample import Lines, resample

from vlmbatch.config import ImageLimits, ImageResolution
from vlmbatch.images.decode import decode_image
from vlmbatch.images.loading.device_pipeline import DevicePipeline, Reply, SlotReply
from vlmbatch.images.loading.settings import DeviceSettings
from vlmbatch.models.processor import ImageProcessor
from vlmbatch.models.qwen_vl.image_processor import QwenImageProcessor
from vlmbatch.nvjpeg import resizing
from vlmbatch.nvjpeg.decoder import NvJpegDecoder
from vlmbatch.types import ImageRef

LIMITS = ImageLimits()


def photo(height: int, width: int, orientation: int = 1) -> ImageRef:
    values = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return ImageRef(data=encoded(Image.fromarray(values), "JPEG", exif=exif))


PHOTOS = [photo(60 + 10 * index, 150 - 12 * index, 1 + index) for index in range(8)]


class Pipeline:
    """``prepare`` of a ``DevicePipeline``; ``made``: how many images were made at a time."""

    def __init__(
        self,
        processor: ImageProcessor,
        monkeypatch: pytest.MonkeyPatch,
        max_pixels: int = 2**20,
        min_pixels: int = 0,
    ) -> None:
        self.made: list[int] = []
        self.memory_is_short = False
        self._processor = processor
        decoder = NvJpegDecoder("cpu", min_pixels)
        decoder.max_pixels = max_pixels
        monkeypatch.setattr(resizing, "resample_lines", self._resample)
        settings = DeviceSettings(LIMITS, processor, lambda: decoder, 1.0)
        self._shared = np.zeros(16 * processor.largest_grid.num_bytes, np.uint8)
        self._replies: list[SlotReply] = []
        self._pipeline = DevicePipeline(settings, decoder, self._shared, self._replies.extend)

    def _resample(self, weights: Tensor, passes: Sequence[Sequence[Lines]]) -> None:
        if self.memory_is_short:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.made.append(len(passes[0]))
        resample(weights, passes)

    def prepare(self, refs: Sequence[ImageRef]) -> list[Reply | None]:
        """All replies, each of which must have been told once."""
        self._replies.clear()
        self._pipeline.prepare(refs)
        by_slot = dict(self._replies)
        assert len(self._replies) == len(by_slot) == len(refs)
        return [by_slot[slot] for slot in range(len(refs))]

    def check(self, ref: ImageRef, slot: int, reply: Reply | None) -> None:
        """See that a reply and what is in its slot are what a worker would have made."""
        assert reply is not None
        expected = self._processor.process(decode_image(ref, LIMITS))
        start = slot * self._processor.largest_grid.num_bytes
        pixels = self._shared[start : start + expected.pixels.size]
        np.testing.assert_array_equal(pixels, expected.pixels.reshape(-1))
        assert reply["content_hash"] == expected.content_hash.hex()


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_batch_is_made_at_once(
    name: str, torchvision: FakeTorchvision, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(PROCESSORS[name], monkeypatch)
    for slot, reply in enumerate(pipeline.prepare(PHOTOS)):
        pipeline.check(PHOTOS[slot], slot, reply)
    assert torchvision.batches == [1, 4, 4]  # the second, for which an engine waits, is a small one
    resizes = name not in ("llava, not resized", "transformers")
    assert len(pipeline.made) == 2 * int(resizes)
    for slot, reply in enumerate(pipeline.prepare(PHOTOS)):
        pipeline.check(PHOTOS[slot], slot, reply)
    assert torchvision.batches == [1, 4, 4, 8]
    assert len(pipeline.made) == 3 * int(resizes)


def test_batches_follow_each_other(
    torchvision: FakeTorchvision, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(PROCESSORS["qwen"], monkeypatch, max_pixels=30_000)
    for slot, reply in enumerate(pipeline.prepare(PHOTOS)):
        pipeline.check(PHOTOS[slot], slot, reply)
    assert torchvision.batches[1:] == pipeline.made
    assert len(pipeline.made) > 2


def test_small_images_are_left_to_others(
    torchvision: FakeTorchvision, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(60 + 10 * index) * (150 - 12 * index) for index in range(8)]
    least = sorted(sizes)[4]
    pipeline = Pipeline(PROCESSORS["qwen"], monkeypatch, min_pixels=least)
    replies = pipeline.prepare(PHOTOS)
    assert [reply is not None for reply in replies] == [size >= least for size in sizes]


def test_a_batch_for_which_memory_is_short_is_left_to_others(
    torchvision: FakeTorchvision, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(PROCESSORS["qwen"], monkeypatch)
    pipeline.memory_is_short = True
    assert pipeline.prepare(PHOTOS) == [None] * 8
    pipeline.memory_is_short = False
    pipeline.check(PHOTOS[0], 0, pipeline.prepare(PHOTOS[:1])[0])


def test_an_image_that_the_model_does_not_take_costs_no_other(
    torchvision: FakeTorchvision, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(QwenImageProcessor(8, 256, 6400, CUBIC, NORMAL), monkeypatch)
    refused = [
        photo(3, 900),  # too long a strip
        ImageRef(data=PHOTOS[0].data, resolution=ImageResolution(max_pixels=10**6)),
    ]
    refs = [PHOTOS[0], *refused, PHOTOS[1]]
    first, *others, last = pipeline.prepare(refs)
    assert others == [None, None]
    pipeline.check(PHOTOS[0], 0, first)
    pipeline.check(PHOTOS[1], 3, last)
    assert pipeline.made == [2]
