"""The physical bounds against numbers worked out by hand for LLaVA-1.5-7B in bfloat16."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pixel_scaling import scaling

from vlmbatch.attention import make_backend
from vlmbatch.bench import device_rates, random_checkpoint
from vlmbatch.bench.bounds import workload_bounds
from vlmbatch.bench.device_rates import measure_rates
from vlmbatch.bench.random_checkpoint import make_tokenizer, prepare_checkpoint
from vlmbatch.bench.workloads import WORKLOADS
from vlmbatch.config import ImageResolution
from vlmbatch.costs.model import ModelCosts, model_costs
from vlmbatch.costs.rates import DeviceRates
from vlmbatch.models.config import ModelConfig, with_quantization
from vlmbatch.models.family import load_model_config
from vlmbatch.models.llava_next.config import LlavaNextConfig
from vlmbatch.models.llava_next.image_processor import LlavaNextImageProcessor
from vlmbatch.models.processor import ImageProcessor
from vlmbatch.models.qwen_vl.config import QwenVLConfig
from vlmbatch.models.qwen_vl.image_processor import QwenImageProcessor
from vlmbatch.models.registry import build_model
from vlmbatch.models.shrink import Shrink
from vlmbatch.models.weights import weight_slots
from vlmbatch.types import ImageGrid

H100 = DeviceRates(flops_per_second=800e12, bytes_per_second=3.1e12)
POOL = 118_000


GRID = ImageGrid(24, 24, 576, 336 * 336 * 3)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("llava")
    prepare_checkpoint("llava-1.5-7b", folder)
    return load_model_config(folder)


def costs_of(llava: ModelConfig) -> ModelCosts:
    return model_costs(llava, 2, GRID)


def test_costs_of_llava(llava: ModelConfig) -> None:
    costs = model_costs(llava, 2, GRID)
    # 32 layers of 4 x 4096 x 4096 and 3 x 4096 x 11008 weights, two operations each.
    assert costs.token_flops == 32 * 2 * (4 * 4096**2 + 3 * 4096 * 11_008) == 12_952_010_752
    mean_keys = 300  # of a prompt of 600
    assert costs.token_flops + mean_keys * costs.pair_flops == pytest.approx(13.1e9, rel=0.005)
    assert costs.tower_flops == pytest.approx(0.366e12, rel=0.002)
    assert costs.image_flops - costs.tower_flops == 576 * 2 * (1024 + 4096) * 4096
    assert costs.kv_bytes_per_token == 524_288
    assert costs.decoder_bytes == pytest.approx(13.48e9, rel=0.001)
    assert costs.decoder_bytes - costs.step_bytes == 32_064 * 4096 * 2  # the embedding table


def test_weights_are_those_of_the_model(llava: ModelConfig) -> None:
    """Counted in the model as it is built, norms apart."""
    backend = make_backend("torch", "cpu")
    model = build_model(llava, scaling(), backend)
    sizes = {name: slot.target.numel() for name, slot in weight_slots(model)}
    decoder = sum(
        size
        for name, size in sizes.items()
        if name.startswith(("language_model.", "lm_head.")) and "norm" not in name
    )
    assert 2 * decoder == model_costs(llava, 2, GRID).decoder_bytes


@pytest.mark.parametrize(
    ("name", "arithmetic_ms", "bytes_ms"),
    [
        ("classify", 8.30 / 0.8, 0.37),
        # 614 tokens of prompt and 127 more; their KV, and the weights over a batch of 159
        ("caption", 10.5 + 2.2, 14.55 + 3.4),
        # an eighth of 8.0 TFLOP for the image; 32 tokens of a question and its answer
        ("vqa", 1.26 + 0.52, 0.31),
    ],
)
def test_bounds_of_a_row(
    llava: ModelConfig, name: str, arithmetic_ms: float, bytes_ms: float
) -> None:
    workload = WORKLOADS[name]
    bounds = workload_bounds(workload, workload.gpu_rows, costs_of(llava), 576, POOL, H100)
    assert 1000 / bounds.arithmetic_rows_per_second == pytest.approx(arithmetic_ms, rel=0.02)
    assert 1000 / bounds.bytes_rows_per_second == pytest.approx(bytes_ms, rel=0.02)
    serial = 1000 / (arithmetic_ms + bytes_ms)
    assert bounds.serial_rows_per_second == pytest.approx(serial, rel=0.02)


@pytest.mark.parametrize(
    ("model", "size", "token_gflop", "kv_bytes", "tower_tflop"),
    [
        # 36 layers of 4096 x (2 x 4096 + 2 x 1024 + 3 x 12,288) weights; 1,200 patches of 0.82
        # GFLOP, and the attention of 1,200 x 1,200
        ("qwen3-vl-8b", (640, 480), 13.89, 147_456, 1200 * 0.821e-3 + 0.179),
        ("qwen3-vl-8b", (1024, 1448), 13.89, 147_456, 5760 * 0.821e-3 + 4.128),
        # 46 x 34 patches of 14 pixels; whole images attended to in four layers of 32, else windows
        # of 64 patches or what is left of them
        ("qwen2.5-vl-7b", (640, 480), 13.05, 57_344, 1564 * 1.262e-3 + 0.066),
        # The whole and 2 x 2 tiles: 577 tokens each through 23 layers, 729 through 26
        ("llava-v1.6-mistral-7b", (640, 480), 13.96, 131_072, 5 * (0.335 + 0.0314)),
        ("llava-onevision-qwen2-0.5b", (640, 480), 0.7157, 12_288, 5 * (0.578 + 0.0637)),
        ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", (300, 300), 0.7157, 12_288, 2 * 0.6417),
    ],
)
def test_costs_of_models_whose_images_vary(
    model: str,
    size: tuple[int, int],
    token_gflop: float,
    kv_bytes: int,
    tower_tflop: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Its tokens say nothing of costs, and 150,000 of them take long.
    monkeypatch.setattr(random_checkpoint, "make_tokenizer", lambda *sizes: make_tokenizer(500, 3))
    prepare_checkpoint(model, tmp_path)
    config = load_model_config(tmp_path)
    resolution = ImageResolution()
    images: ImageProcessor
    if isinstance(config, LlavaNextConfig):
        images = LlavaNextImageProcessor.load(tmp_path, config, Shrink.of(resolution))
    else:
        assert isinstance(config, QwenVLConfig)
        images = QwenImageProcessor.load(tmp_path, config.vision, resolution, 10**6)
    width, height = size
    costs = model_costs(config, 2, images.grid(height, width))
    assert costs.token_flops / 1e9 == pytest.approx(token_gflop, rel=0.005)
    assert costs.kv_bytes_per_token == kv_bytes
    assert costs.tower_flops / 1e12 == pytest.approx(tower_tflop, rel=0.01)


def test_the_decode_batch_is_what_the_pool_holds_and_the_rows_fill(llava: ModelConfig) -> None:
    caption = WORKLOADS["caption"]

    def batch(rows: int, pool: int) -> int:
        return workload_bounds(caption, rows, costs_of(llava), 576, pool, H100).decode_batch

    assert batch(768, POOL) == POOL // (614 + 128)
    assert batch(20, POOL) == 20
    assert batch(768, 100) == 1


def test_questions_of_one_image_pay_for_it_once(llava: ModelConfig) -> None:
    vqa = WORKLOADS["vqa"]
    apart = replace(vqa, questions=1)
    shared, single = (
        workload_bounds(workload, 1024, costs_of(llava), 576, 10**6, H100)
        for workload in (vqa, apart)
    )
    costs = model_costs(llava, 2, GRID)
    image = costs.image_flops + 576 * costs.token_flops + costs.pair_flops * 576 * 577 // 2
    assert single.row_flops - shared.row_flops == pytest.approx(image * 7 / 8)
    assert single.row_bytes - shared.row_bytes == pytest.approx(
        15 * 576 * 7 / 8 * costs.kv_bytes_per_token
    )


def test_grouped_queries_and_tied_tables_cost_less(llava: ModelConfig) -> None:
    text = replace(llava.text, num_kv_heads=8)
    grouped = model_costs(replace(llava, text=text, tie_word_embeddings=True), 2, GRID)
    plain = model_costs(llava, 2, GRID)
    assert grouped.kv_bytes_per_token * 4 == plain.kv_bytes_per_token
    assert plain.token_flops - grouped.token_flops == 32 * 2 * 4096 * 2 * 3072
    assert grouped.decoder_bytes == grouped.step_bytes


def test_quantized_layers_are_multiplied_at_the_rate_of_fp8(llava: ModelConfig) -> None:
    quantized = with_quantization(llava, "fp8")
    twice = replace(H100, fp8_flops_per_second=1600e12)
    plain, without, within = (
        workload_bounds(WORKLOADS["classify"], 1000, model_costs(config, 2, GRID), 576, POOL, rates)
        for config, rates in ((llava, twice), (quantized, H100), (quantized, twice))
    )
    assert without.arithmetic_rows_per_second == plain.arithmetic_rows_per_second
    layers = 12_952_010_752 * (576 + 24 + 3)
    saved = 1 / plain.arithmetic_rows_per_second - 1 / within.arithmetic_rows_per_second
    assert saved == pytest.approx(layers / 1600e12)
    assert within.row_flops == plain.row_flops


def test_rates_of_this_machine_are_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_rates, "_SECONDS", 0.0)
    rates = measure_rates(torch.device("cpu"), torch.float32)
    assert rates.flops_per_second > 1e8
    assert rates.bytes_per_second > 1e8


def test_keys_and_values_may_be_of_fewer_bytes(llava: ModelConfig) -> None:
    plain, fewer = model_costs(llava, 2, GRID), model_costs(llava, 2, GRID, kv_itemsize=1)
    assert 2 * fewer.kv_bytes_per_token == plain.kv_bytes_per_token
    assert fewer == replace(plain, kv_bytes_per_token=fewer.kv_bytes_per_token)
