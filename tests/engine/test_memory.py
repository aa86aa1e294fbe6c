"""What the KV cache may take of a GPU, and the step that is measured to find out."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_model import IMAGE_TOKENS, FakeBackend, FakeModel, fake_config, fake_image
from hypothesis import given
from hypothesis import strategies as st
from llava_7b import TEXT
from torch import Tensor
from vlmbatch_kernels.quantized_rows import E4M3

from vlmbatch.attention import make_backend
from vlmbatch.attention.base import AttentionMetadata, LayerKVCache
from vlmbatch.config import EngineConfig, ImageArguments, PromptConfig
from vlmbatch.engine.kv_cache import (
    KVCache,
    kv_bytes_per_token,
    pool_granules,
    resolve_kv_dtype,
)
from vlmbatch.engine.limits import Limits
from vlmbatch.engine.memory import kv_tokens_beside, kv_tokens_within, run_largest_step
from vlmbatch.errors import ConfigError
from vlmbatch.models.family import load_model_config, load_processor
from vlmbatch.models.registry import random_model
from vlmbatch.models.vision_language_model import Embedded
from vlmbatch.types import FeatureImage, ImageInput

CPU = torch.device("cpu")
SAMPLE = Path(__file__).parents[2] / "samples" / "tiny-llava"
ON_CUDA = Limits.resolve(EngineConfig(), TEXT, "cuda")


class WatchedModel(FakeModel):
    """Notes how large the steps were that it was put to."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = self.sampled = self.image_tokens = 0
        self.lengths: list[int] = []
        self.positions = torch.empty(0)

    def embed(
        self,
        input_ids: Tensor,
        features: Tensor | None = None,
        feature_rows: Tensor | None = None,
    ) -> Embedded:
        if feature_rows is not None:
            self.image_tokens = int((feature_rows >= 0).sum())
        return super().embed(input_ids, features, feature_rows)

    def forward(
        self,
        embedded: Embedded,
        positions: Tensor,
        kv_caches: list[LayerKVCache],
        metadata: AttentionMetadata,
    ) -> Tensor:
        self.tokens, self.lengths = len(embedded.hidden), list(metadata.query_lens)
        self.positions = positions
        return super().forward(embedded, positions, kv_caches, metadata)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        self.sampled = len(hidden)
        return super().compute_logits(hidden)


@given(
    max_num_seqs=st.integers(1, 40),
    max_batched_tokens=st.integers(1, 100),
    max_model_len=st.integers(2, 50),
    pixels=st.booleans(),
)
def test_the_step_measured_is_as_large_as_any(
    max_num_seqs: int, max_batched_tokens: int, max_model_len: int, pixels: bool
) -> None:
    limits = Limits(max_num_seqs, max_batched_tokens, max_model_len, vision_tokens=5 * IMAGE_TOKENS)
    model = WatchedModel()
    image: ImageInput = fake_image(1)
    if not pixels:
        image = FeatureImage(np.zeros((IMAGE_TOKENS, 3), np.float32), b"", image.grid)
    run_largest_step(model, fake_config(), limits, FakeBackend(), CPU, torch.float64, image)
    assert model.positions.min() >= 0 and model.positions.max() < max_model_len
    assert model.tokens == min(max_batched_tokens, max_num_seqs * max_model_len)
    assert model.sampled == min(max_num_seqs, max_batched_tokens)
    assert max(model.lengths) <= max_model_len
    if max_model_len > 1 and max_batched_tokens > max_num_seqs:
        assert model.num_encoded == 5, "also where no prompt can hold a whole image"
    if max_model_len > IMAGE_TOKENS and max_batched_tokens > max_num_seqs + IMAGE_TOKENS:
        room = (max_batched_tokens - model.sampled) // IMAGE_TOKENS
        assert model.image_tokens == IMAGE_TOKENS * min(max_num_seqs, room)


def test_the_step_leaves_no_garbage_that_holds_memory() -> None:
    """What is loaded is frozen without a collection: see ``freeze_loaded``."""
    limits = Limits(4, 64, 32, vision_tokens=2 * IMAGE_TOKENS)
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        given = fake_config(), limits, FakeBackend(), CPU, torch.float64, fake_image(1)
        run_largest_step(FakeModel(), *given)
        gc.collect()
        assert not any(isinstance(each, Tensor) for each in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


def test_an_80_gb_gpu_holds_118_000_tokens_beside_llava_7b() -> None:
    total, context, weights = int(79.1 * 2**30), 900_000_000, 14_130_000_000
    images, largest_step, margin = 512 * 576 * 4096 * 2, 1_600_000_000, 3 * 2**29
    left = total - context - weights - images - largest_step - margin
    tokens = kv_tokens_within(left, TEXT, ON_CUDA, 16, torch.bfloat16)
    assert tokens >= 118_000
    assert tokens % 16 == 0
    assert tokens * kv_bytes_per_token(TEXT, torch.bfloat16) <= left


def test_twice_as_many_tokens_are_held_in_e4m3() -> None:
    dtypes = torch.bfloat16, E4M3
    few, many = (kv_tokens_within(2**36, TEXT, ON_CUDA, 16, each) for each in dtypes)
    assert many == 2 * few == 2**36 // 2**18
    text = replace(TEXT, num_layers=2)
    few, many = (pool_granules(None, text, ON_CUDA, 16, each) for each in dtypes)
    assert many == 2 * few == 2**30 // 2**14 // 16


def test_no_more_is_taken_than_steps_can_use() -> None:
    few = replace(ON_CUDA, max_num_seqs=3, max_model_len=100)
    assert kv_tokens_within(2**40, TEXT, few, 16, torch.bfloat16) == 3 * 112


@pytest.mark.parametrize("num_bytes", [-(2**30), 4095 * 2**19])
def test_too_little_for_one_sequence_is_refused_with_both_numbers(num_bytes: int) -> None:
    holds = max(0, num_bytes // 2**19)
    message = f"holds {holds} tokens, fewer than the context length of 4096; .*--max-model-len"
    with pytest.raises(ConfigError, match=message):
        kv_tokens_within(num_bytes, TEXT, ON_CUDA, 16, torch.bfloat16)
    assert kv_tokens_within(4096 * 2**19, TEXT, ON_CUDA, 16, torch.bfloat16) == 4096


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What torch says of a GPU that is not there."""
    state = {"free": 70 * 2**30, "before": 14 * 2**30, "peak": 16 * 2**30}
    cuda = {
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: None,
        "mem_get_info": lambda device: (state["free"], 80 * 2**30),
        "memory_reserved": lambda device: state["before"],
        "max_memory_reserved": lambda device: state["peak"],
    }
    for name, function in cuda.items():
        monkeypatch.setattr(torch.cuda, name, function)
    return state


@pytest.mark.parametrize("kv_dtype", [torch.float32, E4M3], ids=str)
@pytest.mark.parametrize("pixels", [True, False])
def test_what_the_step_takes_and_images_and_graphs_is_left_free(
    gpu: dict[str, int], pixels: bool, kv_dtype: torch.dtype
) -> None:
    config = load_model_config(SAMPLE)
    backend = make_backend("torch", "cpu")
    arguments = ImageArguments("pixel_values" if pixels else "image_features")
    processor = load_processor(SAMPLE, config, PromptConfig(), arguments)
    model = random_model(config, processor.images, CPU, torch.float32, backend)
    limits = Limits(10**6, 256, 512, vision_tokens=200)
    largest = processor.largest_image()
    dtypes = torch.float32, kv_dtype
    tokens = kv_tokens_beside(model, config, limits, backend, CPU, *dtypes, largest)
    images = limits.cached_image_tokens * config.text.hidden_size * 4
    left = gpu["free"] - 2 * 2**30 - images - 3 * 2**29
    per_token = kv_bytes_per_token(config.text, kv_dtype)
    assert tokens == left // per_token // 16 * 16
    given = (model, config, limits, backend, CPU, *dtypes, largest)
    fewer = kv_tokens_beside(*given, reserved_bytes=2**29)
    assert fewer == (left - 2**29) // per_token // 16 * 16


def test_a_step_that_finds_no_room_is_refused_with_both_numbers(gpu: dict[str, int]) -> None:
    class LargeModel(FakeModel):
        def compute_logits(self, hidden: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    gpu["free"] = 2**29
    limits = Limits(4, 64, 32, vision_tokens=12)
    dtypes = torch.float64, torch.float64
    message = "0.5 GiB, too little for a step of 64 tokens .GPU 0 has 80.0 GiB, .*--max-batched-tok"
    with pytest.raises(ConfigError, match=message):
        kv_tokens_beside(
            LargeModel(), fake_config(), limits, FakeBackend(), CPU, *dtypes, fake_image(1)
        )


@pytest.mark.parametrize("tokens", [2**40, 2**80])
def test_a_kv_cache_beyond_all_memory_is_refused(tokens: int) -> None:
    with pytest.raises(ConfigError) as caught:
        KVCache(TEXT, tokens, 16, 16, torch.bfloat16, CPU)
    assert f"a KV cache of {tokens} tokens" in str(caught.value)
    assert "lower --kv-cache-tokens" in str(caught.value)


def test_granules_in_e4m3_are_copied_as_they_are() -> None:
    text = replace(TEXT, num_layers=2, num_kv_heads=2, head_dim=4)
    scales = [torch.ones(2, 2)] * 2
    cache = KVCache(text, 64, 16, 16, E4M3, CPU, scales)
    for layer in cache.layers:
        for pool in (layer.key, layer.value):
            pool.view(torch.uint8).random_(256)
    before = [layer.key.view(torch.uint8).clone() for layer in cache.layers]
    cache.copy(torch.tensor([0, 3]), torch.tensor([2, 1]))
    for layer, old in zip(cache.layers, before, strict=True):
        new = layer.key.view(torch.uint8)
        assert torch.equal(new[32:48], old[:16]) and torch.equal(new[16:32], old[48:64])
        assert torch.equal(new[:16], old[:16]) and torch.equal(new[48:], old[48:])


def test_a_gpu_that_does_not_convert_e4m3_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert resolve_kv_dtype("auto", torch.bfloat16, device) == torch.bfloat16
    message = "--kv-cache-dtype fp8 needs a GPU of capability 8.9, this one has 8.6"
    with pytest.raises(ConfigError, match=message):
        resolve_kv_dtype("fp8", torch.bfloat16, device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr("vlmbatch.engine.kv_cache.has_triton", lambda: False)
    with pytest.raises(ConfigError, match="--kv-cache-dtype fp8 needs triton"):
        resolve_kv_dtype("fp8", torch.bfloat16, device)
    monkeypatch.setattr("vlmbatch.engine.kv_cache.has_triton", lambda: True)
    assert resolve_kv_dtype("fp8", torch.bfloat16, device) == E4M3
    assert resolve_kv_dtype("fp8", torch.bfloat16, CPU) == E4M3
