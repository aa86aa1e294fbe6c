"""Which kernel the flash-attn backend decodes with. flash-attn itself is tested in tests/gpu."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from fp8_kv_cases import attend_in_e4m3
from paged_batch import make_pool, make_step, write_and_attend
from torch import Tensor

from vlmbatch.attention import triton_paged
from vlmbatch.attention.base import AttentionSpec, SharedPrefixes

SPEC = AttentionSpec(4, 2, 8, 0.3)
OTHER_SPEC = AttentionSpec(4, 2, 8, 0.3, sliding_window=19)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The decode kernels called, in order; both return zeros."""
    called: list[str] = []

    def split_kv(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        called.append("flash-attn")
        return torch.zeros_like(query)

    def decode(query: Tensor, *args: Any) -> Tensor:
        called.append("ours")
        return torch.zeros_like(query)

    package = SimpleNamespace(flash_attn_with_kvcache=split_kv)
    interface = SimpleNamespace(flash_attn_gpu=None)
    name = "vlmbatch.attention.flash"
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", interface)
    monkeypatch.setitem(sys.modules, name, ModuleType(name))  # puts back what was there, or nothing
    del sys.modules[name]
    module = import_module(name)
    monkeypatch.setattr(module, "decode", decode)
    monkeypatch.setattr(module, "has_triton", lambda: True)
    return called


def decode_steps(*steps: tuple[int, AttentionSpec], shared: SharedPrefixes | None = None) -> None:
    """Steps of so many sequences through one backend."""
    backend = sys.modules["vlmbatch.attention.flash"].FlashAttnBackend()
    for count, spec in steps:
        step = make_step([(1, 5)] * count, spec, 256, 16, generator=torch.Generator())
        step.pool = torch.cat([step.pool, torch.zeros(2, 256, 2, 8)], dim=1)
        step.metadata.shared = shared
        pool = make_pool(step, spec)
        out = write_and_attend(backend, step.query, step.key, step.value, pool, step.metadata, spec)
        assert out.shape == step.query.shape


def test_ours_where_it_fills_the_gpu(calls: list[str]) -> None:
    decode_steps((512, SPEC), (511, SPEC), (600, SPEC))
    assert calls == ["ours", "flash-attn", "ours"]


def test_ours_is_compiled_by_the_first_step_of_each_kind(calls: list[str]) -> None:
    decode_steps((3, SPEC), (3, SPEC), (3, OTHER_SPEC), (4, SPEC), (4, OTHER_SPEC))
    assert calls == ["ours", "flash-attn", "ours", "flash-attn", "flash-attn"]


def test_ours_where_prefixes_are_shared(calls: list[str]) -> None:
    """Which is another kernel: the plain one is still to be compiled. Windows leave none of it."""
    shared = SharedPrefixes(torch.full((3,), 4), torch.tensor([[0, 3]]))
    decode_steps((3, SPEC), (3, OTHER_SPEC), (3, OTHER_SPEC), shared=shared)
    assert calls == ["ours", "ours", "flash-attn"]
    calls.clear()
    decode_steps((3, SPEC), (3, SPEC), shared=shared)
    assert calls == ["ours", "ours"]


def test_flash_attn_without_triton(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["vlmbatch.attention.flash"], "has_triton", lambda: False)
    decode_steps((3, SPEC), (600, SPEC))
    assert calls == ["flash-attn", "flash-attn"]


@pytest.mark.parametrize("lengths", [[(1, 5), (1, 300)], [(1, 90), (20, 20), (9, 260)]])
def test_ours_where_keys_are_in_e4m3(
    calls: list[str], lengths: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few decodes as well, and chunks, in every step."""
    module = sys.modules["vlmbatch.attention.flash"]
    monkeypatch.setattr(module, "decode", triton_paged.decode)
    backend = module.FlashAttnBackend()
    for _ in range(2):
        torch.testing.assert_close(*attend_in_e4m3(backend, lengths, SPEC))
    assert calls == []
