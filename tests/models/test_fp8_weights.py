"""Checkpoints in FP8: the numbers of the same checkpoint in float32, and errors that name tensors.

Elsewhere than on a GPU that multiplies e4m3 the weights are dequantized, and nothing else changes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest
import qwen_vl_checkpoints
import torch
from fp8_checkpoints import SCALES, Format, write_fp8
from paged_logits import paged_logits
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlmbatch.attention import make_backend
from vlmbatch.errors import CheckpointError, ConfigError
from vlmbatch.models.config import with_quantization
from vlmbatch.models.family import load_model_config
from vlmbatch.models.fp8 import Fp8Weight
from vlmbatch.models.linear import ColumnLinear, RowLinear
from vlmbatch.models.parallel import ParallelContext
from vlmbatch.models.processor import EncodedPrompt
from vlmbatch.models.registry import build_model, load_model, random_model
from vlmbatch.models.text_model import TextModel
from vlmbatch.models.weights import weight_slots

SAMPLES = Path(__file__).parents[2] / "samples"
CPU = torch.device("cpu")
KINDS: list[Format] = ["compressed-tensors", "fp8"]
BACKEND = make_backend("torch", "cpu")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small ones, of which no part fills a block, and one with whole blocks."""
    folder = tmp_path_factory.mktemp("originals")
    checkpoints.make_checkpoint("qwen2", "clip", folder / "llava")
    qwen_vl_checkpoints.make_checkpoint("qwen3_vl", folder / "qwen3_vl")
    qwen_vl_checkpoints.make_checkpoint("qwen2_5_vl", folder / "qwen2_5_vl")
    names = ("llava", "qwen3_vl", "qwen2_5_vl")
    return {"tiny-llava": SAMPLES / "tiny-llava"} | {name: folder / name for name in names}


@pytest.fixture(scope="module")
def damaged(
    originals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Format, Callable[[dict[str, Tensor]], object]], Path]:
    """A quantized checkpoint with a change to its tensors."""

    def make(kind: Format, change: Callable[[dict[str, Tensor]], object]) -> Path:
        folder, _ = write_fp8(originals["llava"], tmp_path_factory.mktemp("damaged"), kind)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def load(folder: Path, *, quantize: bool = False, dtype: torch.dtype = torch.float32) -> TextModel:
    """Without its tower."""
    config = with_quantization(load_model_config(folder), "fp8" if quantize else None)
    model = load_model(folder, config, None, CPU, dtype, BACKEND)
    assert isinstance(model, TextModel)
    return model


def logits(model: TextModel) -> Tensor:
    ids = [list(range(10, 10 + length)) for length in (31, 7, 1)]
    prompts = [EncodedPrompt(each, ()) for each in ids]
    return torch.cat(paged_logits(model, BACKEND, prompts, [[]] * len(ids), -1, chunk=16))


def quantized_layers(model: TextModel) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (ColumnLinear, RowLinear)) and module.fp8 is not None
    ]


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tiny-llava", "llava", "qwen3_vl", "qwen2_5_vl"])
def test_logits_equal_those_of_the_same_numbers_in_float32(
    originals: dict[str, Path], name: str, kind: Format, scale_dtype: torch.dtype, tmp_path: Path
) -> None:
    quantized, plain = write_fp8(originals[name], tmp_path, kind, scale_dtype=scale_dtype)
    model = load(quantized)
    assert len(quantized_layers(model)) == 4 * len(model.language_model.layers)
    assert torch.equal(logits(model), logits(load(plain)))


@pytest.mark.parametrize("name", ["tiny-llava", "qwen3_vl"])
def test_a_checkpoint_quantized_while_it_loads_is_that_of_its_format(
    originals: dict[str, Path], name: str, tmp_path: Path
) -> None:
    _, plain = write_fp8(originals[name], tmp_path, "compressed-tensors")
    model = load(originals[name], quantize=True)
    assert len(quantized_layers(model)) == 4 * len(model.language_model.layers)
    assert torch.equal(logits(model), logits(load(plain)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "ignored",
    ["language_model.layers.1.self_attn", r"re:.*layers\.1\.self_attn\..*", "self_attn"],
)
def test_ignored_layers_stay_as_they_are(
    originals: dict[str, Path], kind: Format, ignored: str, tmp_path: Path
) -> None:
    kept = "self_attn" if ignored == "self_attn" else "layers.1.self_attn"
    folders = write_fp8(originals["llava"], tmp_path, kind, kept=[kept], ignore=[ignored])
    model = load(folders[0])
    assert not any(kept in name for name in quantized_layers(model))
    assert len(quantized_layers(model)) == (6 if kept == "self_attn" else 10)
    assert torch.equal(logits(model), logits(load(folders[1])))


def test_a_part_of_a_product_cannot_be_ignored(originals: dict[str, Path], tmp_path: Path) -> None:
    folder, _ = write_fp8(
        originals["llava"], tmp_path, "fp8", kept=["k_proj"], ignore=["lm_head", "k_proj"]
    )
    message = r"layers\.0\.self_attn\.k_proj is ignored and \S*q_proj is not"
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_activations_have_the_run_s_dtype(originals: dict[str, Path], tmp_path: Path) -> None:
    quantized, plain = write_fp8(originals["tiny-llava"], tmp_path, "fp8")
    exact, ours, theirs = (
        logits(load(folder, dtype=dtype)).float()
        for folder, dtype in (
            (plain, torch.float32),
            (quantized, torch.bfloat16),
            (plain, torch.bfloat16),
        )
    )
    assert 0 < (ours - exact).norm() <= 1.5 * (theirs - exact).norm()


def layer(tensors: dict[str, Tensor], end: str) -> str:
    return next(name for name in tensors if re.match(rf"language_model.*layers\.1\.{end}$", name))


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan, torch.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_scales_are_positive_and_finite(damaged: Callable[..., Path], kind: Format, value: float):
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[layer(tensors, f"mlp.up_proj.{SCALES[kind]}")][0, 0] = value

    message = rf"layers\.1\.mlp\.up_proj\.{SCALES[kind]}: 1 of \d+ scales .* first of them {value}"
    with pytest.raises(CheckpointError, match=message):
        load(damaged(kind, change))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_or_misshapen_is_named(damaged: Callable[..., Path], kind: Format) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[layer(tensors, f"mlp.up_proj.{SCALES[kind]}")]
        tensors[layer(tensors, f"mlp.down_proj.{SCALES[kind]}")] = torch.ones(3, 1)
        name = layer(tensors, "self_attn.o_proj.weight")
        tensors[name] = tensors[name].float()
        tensors[layer(tensors, "self_attn.q_proj.weight")] = torch.ones(32, 31).to(
            torch.float8_e4m3fn
        )

    with pytest.raises(CheckpointError) as caught:
        load(damaged(kind, change))
    shape = r"(32, 1)" if kind == "compressed-tensors" else r"(1, 1)"
    for message in (
        f"missing: language_model.layers.1.mlp.up_proj.{SCALES[kind]}",
        f"layers.1.mlp.down_proj.{SCALES[kind]}: expected {shape}, found (3, 1)",
        "layers.1.self_attn.o_proj.weight: expected F8_E4M3, found F32",
        "layers.1.self_attn.q_proj.weight: expected (32, 32), found (32, 31)",
    ):
        assert message in str(caught.value)


def test_a_quantized_layer_that_the_configuration_ignores_is_named(
    originals: dict[str, Path], tmp_path: Path
) -> None:
    folder, _ = write_fp8(originals["llava"], tmp_path, "fp8", ignore=["down_proj"])
    with pytest.raises(CheckpointError, match=r"down_proj\.weight: expected a float, found F8_E4M"):
        load(folder)


def test_a_truncated_file_is_named(originals: dict[str, Path], tmp_path: Path) -> None:
    folder, _ = write_fp8(originals["llava"], tmp_path, "fp8")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"fp8/model\.safetensors cannot be read"):
        load(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_only_finite_weights_are_quantized(
    originals: dict[str, Path], value: float, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(originals["llava"], tmp_path / "copy"))
    tensors = load_file(folder / "model.safetensors")
    tensors[layer(tensors, "mlp.up_proj.weight")][3, 4] = value
    save_file(tensors, folder / "model.safetensors")
    message = r"layers\.1\.mlp\.up_proj\.weight: not all weights are finite"
    with pytest.raises(CheckpointError, match=message):
        load(folder, quantize=True)


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_random_weights_are_about_as_large_as_others(
    originals: dict[str, Path], kind: Format | None, tmp_path: Path
) -> None:
    folder = originals["tiny-llava"]
    if kind is not None:
        folder, _ = write_fp8(folder, tmp_path, kind)
    config = load_model_config(folder)
    config = config if kind else with_quantization(config, "fp8")
    model = random_model(config, None, CPU, torch.float32, BACKEND)
    assert isinstance(model, TextModel)
    weights = [each for each in model.modules() if isinstance(each, Fp8Weight)]
    assert weights[0].dequantized(torch.float32).std() == pytest.approx(0.02, rel=0.05)
    assert torch.isfinite(logits(model)).all()


def test_ranks_take_whole_blocks(originals: dict[str, Path], tmp_path: Path) -> None:
    folder, _ = write_fp8(originals["tiny-llava"], tmp_path, "fp8")
    config = load_model_config(folder)
    model = build_model(config, None, BACKEND, ParallelContext(1, 2))
    message = r"q_proj: 64 of 128 rows or columns are no whole blocks of 128"
    with pytest.raises(ConfigError, match=message):
        dict(weight_slots(model))
