"""Weights and images reach the GPU whole, and the KV cache leaves room for the largest step."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from pixel_scaling import scaling

from vlmbatch.attention import make_backend
from vlmbatch.config import EngineConfig, ImageArguments, PromptConfig
from vlmbatch.engine.image_upload import ImageUpload
from vlmbatch.engine.kv_cache import KVCache
from vlmbatch.engine.limits import Limits
from vlmbatch.engine.memory import kv_tokens_beside, run_largest_step
from vlmbatch.models import pinned_loader
from vlmbatch.models.family import load_model_config, load_processor
from vlmbatch.models.llava.model import Model as LlavaModel
from vlmbatch.models.registry import load_model, random_model

SAMPLE = Path(__file__).parents[2] / "samples" / "tiny-llava"
CUDA = torch.device("cuda")


@pytest.mark.parametrize("buffer_bytes", [1000, 32 * 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_that_a_cpu_loads(
    dtype: torch.dtype, buffer_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned_loader, "_BUFFER_BYTES", buffer_bytes)

    def load(device: torch.device) -> LlavaModel:
        backend = make_backend("torch", device.type)
        return load_model(SAMPLE, load_model_config(SAMPLE), scaling(), device, dtype, backend)

    ours, theirs = load(CUDA), load(torch.device("cpu"))
    expected = dict(chain(theirs.named_parameters(), theirs.named_buffers()))
    for name, tensor in chain(ours.named_parameters(), ours.named_buffers()):
        assert tensor.is_cuda
        torch.testing.assert_close(tensor.cpu(), expected.pop(name))
    assert not expected


def test_batches_sent_one_after_another_do_not_mix() -> None:
    upload = ImageUpload(CUDA)
    sent = []
    for value in range(100):
        sizes = [(336 + n, 300) for n in range(8)]
        images = [np.full((*size, 3), (value + n) % 256, np.uint8) for n, size in enumerate(sizes)]
        # The current stream is busy: the copies are long done when it takes them.
        torch.cuda._sleep(1_000_000)
        sent.append(torch.stack([image.amax() for image in upload.pixels(images)]))
    for value, largest in enumerate(sent):
        assert largest.tolist() == [(value + n) % 256 for n in range(8)]


@pytest.mark.whole_gpu
@pytest.mark.parametrize("pixels", [True, False])
def test_the_largest_step_fits_beside_the_kv_cache(pixels: bool) -> None:
    config = load_model_config(SAMPLE)
    backend = make_backend("auto", "cuda", torch.bfloat16)
    arguments = ImageArguments("pixel_values" if pixels else "image_features")
    processor = load_processor(SAMPLE, config, PromptConfig(), arguments)
    model = random_model(config, processor.images, CUDA, torch.bfloat16, backend)
    limits = Limits.resolve(EngineConfig(), config.text, "cuda")
    largest, dtype = processor.largest_image(), torch.bfloat16
    tokens = kv_tokens_beside(model, config, limits, backend, CUDA, dtype, dtype, largest)
    granule, page = backend.granule, backend.block_size
    cache = KVCache(config.text, tokens, granule, page, dtype, CUDA)
    run_largest_step(model, config, limits, backend, CUDA, dtype, largest)
    assert torch.cuda.mem_get_info()[0] > 2**30, "what graphs take"
    del cache
    torch.cuda.empty_cache()
