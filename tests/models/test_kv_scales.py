"""Scales of keys and values in e4m3: nothing that a model can write is clipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from vlmbatch_kernels.rms_norm import rms_norm
from vlmbatch_kernels.rotary import rotary_and_cache, rotary_tables

from vlmbatch.attention import make_backend
from vlmbatch.config import Quantize
from vlmbatch.models.config import with_quantization
from vlmbatch.models.decoder import DecoderLayer
from vlmbatch.models.family import load_model_config
from vlmbatch.models.kv_scales import kv_scales
from vlmbatch.models.registry import load_model
from vlmbatch.models.text_model import TextModel

SAMPLES = Path(__file__).parents[2] / "samples"
HIDDEN, HEADS, SIZE = 64, 3, 16


def written(
    x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor, key_norm: Tensor | None
) -> Tensor:
    """Keys and values (2, T, K, D) of tokens (T, E), at positions far apart."""
    heads = torch.nn.functional.linear(rms_norm(x, gain, 1e-6), weight, bias)
    heads = heads.view(len(x), 2 * HEADS, SIZE)
    inv_freq = 1 / 10_000 ** (torch.arange(0, SIZE, 2) / SIZE)
    cos, sin = rotary_tables(inv_freq, 1000 * len(x), torch.float32)
    slots = torch.arange(len(x))
    at = slots * 1000
    pools = torch.zeros(2, len(x), HEADS, SIZE)
    query = torch.zeros(len(x), 1, SIZE)
    qkv = torch.cat([query, heads], 1)
    tables = cos[at, None], sin[at, None]
    rotary_and_cache(qkv, *tables, pools[0], pools[1], slots, key_norm, key_norm, 1e-6)
    return pools


@pytest.mark.parametrize("key_norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_longest_keys_and_values_there_can_be_just_fit(bias: bool, key_norm: bool) -> None:
    weight = torch.randn(2 * HEADS * SIZE, HIDDEN)
    weight[::SIZE] *= 30  # outliers
    added = torch.randn(len(weight)) * 5 if bias else None
    gain = torch.rand(HIDDEN) * 2
    norm = torch.randn(SIZE) * 3 if key_norm else None
    scales = kv_scales(weight, added, gain, norm, SIZE)
    assert scales.shape == (2, HEADS) and scales.dtype == torch.float32
    # The tokens that each row multiplies to the most, either way, and large and small ones.
    longest = weight * gain
    x = torch.cat([longest, -longest, longest * 1e6, longest * 1e-2])
    largest = written(x, weight, added, gain, norm).abs().amax((1, 3))
    assert (largest <= 448 * scales).all()
    # Twice for the next power of two; the bound itself is reached but for the pair of a turn.
    assert (largest[1] > 448 * scales[1] / 2.01).all()
    assert (largest[0] > 448 * scales[0] / (8 if key_norm else 3)).all()


def test_scales_are_powers_of_two() -> None:
    scales = kv_scales(torch.randn(2 * 8 * SIZE, 8), None, torch.ones(8), None, SIZE)
    assert (torch.frexp(scales).mantissa == 0.5).all()


def test_heads_of_zeros_have_a_scale_as_well() -> None:
    scales = kv_scales(torch.zeros(2 * SIZE, 8), None, torch.ones(8), None, SIZE)
    assert (scales > 0).all() and scales.isfinite().all()


@pytest.mark.parametrize("quantize", [None, "fp8"])
@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen-vl"])
def test_a_model_has_them_layer_by_layer(name: str, quantize: Quantize | None) -> None:
    folder = SAMPLES / name
    config = with_quantization(load_model_config(folder), quantize)
    backend = make_backend("torch", "cpu")
    model = load_model(folder, config, None, torch.device("cpu"), torch.float32, backend)
    assert isinstance(model, TextModel)
    scales = model.kv_scales()
    text = config.text
    assert [each.shape for each in scales] == [(2, text.num_kv_heads)] * text.num_layers
    for layer, own in zip(model.language_model.layers, scales, strict=True):
        assert isinstance(layer, DecoderLayer)
        projection, norm = layer.self_attn.qkv_proj, layer.input_layernorm.weight
        rows = text.num_kv_heads * text.head_dim
        values = projection(torch.eye(text.hidden_size) * norm)[:, -rows:]
        bias = projection(torch.zeros(1, text.hidden_size))[0, -rows:]
        lengths = (values - bias).norm(dim=0) * text.hidden_size**0.5 + bias.abs()
        largest = lengths.view(text.num_kv_heads, -1).amax(1)
        assert (largest <= 448 * own[1]).all() and (largest > 447 * own[1] / 2).all()
