"""FP8 on a GPU: kernels beside their twins, products beside dequantized ones, whole models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fp8_cases import KERNELS, check_block_linear, check_quantized_rows
from fp8_checkpoints import Format, write_fp8
from held_out_rows import SAMPLES, HeldOut
from paged_logits import paged_logits
from vlmbatch_kernels.fp8_linear import channel_linear, dequantize, multiplies
from vlmbatch_kernels.quantized_rows import E4M3, plain_quantized_rows, quantize_rows

from vlmbatch.attention import make_backend
from vlmbatch.config import EngineConfig
from vlmbatch.models.config import with_quantization
from vlmbatch.models.family import load_model_config
from vlmbatch.models.fp8 import Fp8Weight
from vlmbatch.models.processor import EncodedPrompt
from vlmbatch.models.registry import load_model
from vlmbatch.models.text_model import TextModel

CUDA = torch.device("cuda")
DTYPES = [torch.bfloat16, torch.float16]
KINDS: list[Format] = ["compressed-tensors", "fp8"]
needs_products = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
    reason="needs a GPU that multiplies e4m3 with a scale a row (Hopper or later)",
)


@needs_products
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "size", [(5, 203, None), (300, 4096, None), (7, 18944, None), (65, 12288, 128), (3, 384, 128)]
)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str, size: tuple[int, int, int | None], dtype: torch.dtype) -> None:
    check_quantized_rows(name, size, dtype, "cuda", E4M3)


@needs_products
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 256, 128), (16, 512, 4096), (64, 128, 384), (999, 384, 512)])
def test_products_of_blocks(shape: tuple[int, int, int], dtype: torch.dtype, bias: bool) -> None:
    check_block_linear(shape, bias, dtype, "cuda")


@needs_products
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 48, 64), (113, 4608, 3584), (1537, 11008, 4096)])
def test_products_of_channels(shape: tuple[int, int, int], dtype: torch.dtype, bias: bool) -> None:
    rows, outputs, inputs = shape
    assert multiplies(CUDA, dtype, outputs, inputs)
    weight = plain_quantized_rows(torch.randn(outputs, inputs, device=CUDA) / 8)
    x = quantize_rows(torch.randn(rows, inputs, device=CUDA).to(dtype))
    added = torch.randn(outputs, device=CUDA).to(dtype) if bias else None
    exact = x.dequantized() @ dequantize(weight.values, weight.scales, torch.float32).T
    exact += 0 if added is None else added.float()
    got = channel_linear(x, weight.values, weight.scales, added)
    assert got.dtype == dtype
    # Rounded to bfloat16, and summed by the tensor cores with fewer bits than float32 has.
    assert (got.float() - exact).norm() <= 1e-2 * exact.norm()


def logits(
    folder: Path, *, quantize: bool, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    config = with_quantization(load_model_config(folder), "fp8" if quantize else None)
    backend = make_backend("torch", device.type)
    model = load_model(folder, config, None, device, dtype, backend)
    assert isinstance(model, TextModel)
    prompts = [EncodedPrompt(list(range(10, 10 + length))) for length in (90, 7, 1)]
    out = paged_logits(model, backend, prompts, [[]] * len(prompts), -1, chunk=64)
    return torch.cat(out).float().cpu()


@needs_products
@pytest.mark.parametrize("kind", [*KINDS, None])
@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen-vl"])
def test_logits_are_near_those_of_the_same_numbers(
    name: str, kind: Format | None, tmp_path: Path
) -> None:
    quantized, plain = write_fp8(SAMPLES / name, tmp_path, kind or "compressed-tensors")
    exact = logits(plain, quantize=False, device=torch.device("cpu"), dtype=torch.float32)
    source = SAMPLES / name if kind is None else quantized
    got = logits(source, quantize=kind is None, device=CUDA, dtype=torch.bfloat16)
    # Activations are rounded to three bits behind the point, in all layers.
    assert (got - exact).norm() <= 0.06 * exact.norm()


@pytest.mark.parametrize("buffer_bytes", [1000, 32 * 2**20])
def test_weights_quantized_on_the_gpu_are_those_of_a_cpu(
    buffer_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmbatch.models.pinned_loader._BUFFER_BYTES", buffer_bytes)
    folder = SAMPLES / "tiny-llava"
    config = with_quantization(load_model_config(folder), "fp8")
    ours, theirs = (
        load_model(folder, config, None, torch.device(name), torch.bfloat16, backend)
        for name, backend in ((each, make_backend("torch", each)) for each in ("cuda", "cpu"))
    )
    assert isinstance(ours, TextModel) and isinstance(theirs, TextModel)
    pairs = zip(ours.modules(), theirs.modules(), strict=True)
    weights = [pair for pair in pairs if isinstance(pair[0], Fp8Weight)]
    assert len(weights) == 16
    for own, other in weights:
        assert isinstance(own, Fp8Weight) and isinstance(other, Fp8Weight)
        assert torch.equal(own.scales.cpu(), other.scales)
        assert torch.equal(own.values.cpu().float(), other.values.float())


@needs_products
@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_accuracy_is_at_most_a_point_lower(name: str, tmp_path: Path) -> None:
    held_out: HeldOut = getattr(HeldOut, name)(1000, tmp_path)
    plain = held_out.accuracy(EngineConfig(dtype="bfloat16"))
    assert held_out.accuracy(EngineConfig(dtype="bfloat16", quantize="fp8")) >= plain - 0.01
