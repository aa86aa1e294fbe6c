"""Two ranks in two threads hold half the weights each and compute what one rank computes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier

import pytest
import torch
from checkpoints import TextKind, Tower, make_checkpoint
from fp8_checkpoints import write_fp8
from paged_batch import forward_in_chunks
from pixel_scaling import scaling
from torch import Tensor

from vlmbatch.attention import make_backend
from vlmbatch.errors import ConfigError
from vlmbatch.models.family import load_model_config
from vlmbatch.models.llava.model import Model as LlavaModel
from vlmbatch.models.parallel import SINGLE_DEVICE, ParallelContext
from vlmbatch.models.registry import build_model, load_model


@dataclass
class Exchange:
    """Where the threads put their partial sums."""

    world_size: int
    partials: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = Barrier(self.world_size, timeout=60)


@dataclass(frozen=True)
class ThreadedContext(ParallelContext):
    exchange: Exchange = field(default_factory=lambda: Exchange(1))

    def all_reduce(self, partial: Tensor) -> Tensor:
        self.exchange.partials[self.rank] = partial
        self.exchange.barrier.wait()
        total = sum(self.exchange.partials[rank] for rank in range(self.world_size))
        self.exchange.barrier.wait()
        assert isinstance(total, Tensor)
        return total


def load(folder: Path, parallel: ParallelContext) -> LlavaModel:
    config, cpu = load_model_config(folder), torch.device("cpu")
    backend = make_backend("torch", "cpu")
    images = scaling((0.01, 0.02, 0.03), (-1.0, -1.0, -1.0))
    model = load_model(folder, config, images, cpu, torch.float32, backend, parallel)
    assert isinstance(model, LlavaModel)
    return model


def run(model: LlavaModel) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(256, (2, 24, 24, 3), generator=generator, dtype=torch.uint8)
    embeds = [*model.encode_images(list(pixels), []), model.embed(torch.arange(30)).hidden]
    return torch.cat(forward_in_chunks(model, embeds, [7, 1, 30]))


@pytest.mark.parametrize(("kind", "tower"), [("llama", "clip"), ("qwen2", "siglip")])
def test_two_ranks_equal_one(kind: TextKind, tower: Tower, tmp_path: Path) -> None:
    make_checkpoint(kind, tower, tmp_path)
    exchange = Exchange(2)
    with ThreadPoolExecutor(2) as pool:
        models = [load(tmp_path, ThreadedContext(rank, 2, exchange)) for rank in range(2)]
        outputs = list(pool.map(run, models))
    whole = load(tmp_path, SINGLE_DEVICE)
    sizes = [sum(p.numel() for p in m.language_model.layers.parameters()) for m in (*models, whole)]
    assert max(sizes[:2]) < 0.6 * sizes[2]
    assert models[0].attention_specs[0].num_kv_heads == 1
    for output in outputs:
        torch.testing.assert_close(output, run(whole), atol=1e-4, rtol=1e-4)


def test_two_ranks_of_a_quantized_checkpoint_equal_one(tmp_path: Path) -> None:
    make_checkpoint("llama", "clip", tmp_path / "original")
    folder, _ = write_fp8(tmp_path / "original", tmp_path, "compressed-tensors")
    exchange = Exchange(2)
    with ThreadPoolExecutor(2) as pool:
        models = [load(folder, ThreadedContext(rank, 2, exchange)) for rank in range(2)]
        outputs = list(pool.map(run, models))
    expected = run(load(folder, SINGLE_DEVICE))
    for output in outputs:
        torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)


def test_key_value_heads_are_repeated_when_ranks_outnumber_them() -> None:
    shares = [ParallelContext(rank, 4).share(2, 8, repeat=True) for rank in range(4)]
    assert [(share.start, share.count) for share in shares] == [(0, 8), (0, 8), (8, 8), (8, 8)]


def test_indivisible_heads_are_refused(tmp_path: Path) -> None:
    make_checkpoint("llama", "clip", tmp_path)
    config, backend = load_model_config(tmp_path), make_backend("torch", "cpu")
    with pytest.raises(ConfigError, match="cannot be divided over 3 devices"):
        build_model(config, scaling(), backend, ParallelContext(0, 3))
