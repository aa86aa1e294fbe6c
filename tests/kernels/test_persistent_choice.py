"""When our own matrix products run, and when the library's with another kernel behind it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from vlmbatch_kernels.gated_linear import silu_gated_linear
from vlmbatch_kernels.qkv_linear import project_qkv

if find_spec("triton") is None:
    pytest.skip("needs triton (pip install triton, on Linux)", allow_module_level=True)

from vlmbatch_kernels import gated_linear_triton, qkv_linear_triton

BF16 = torch.bfloat16


@pytest.fixture
def ran_fused(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """As on a Hopper GPU; the kernels only note that they were called."""
    calls: list[Any] = []

    def noted(x: Any, *_: object) -> Any:
        calls.append(x)
        return x

    for module in (gated_linear_triton, qkv_linear_triton):
        monkeypatch.setattr(module, "is_hopper", lambda device: True)
        monkeypatch.setattr(module, "fused", noted)
    return calls


@pytest.mark.parametrize(
    ("rows", "depth", "size", "dtype", "is_fused"),
    [
        (1536, 16, 24, BF16, True),
        (1536, 16, 24, torch.float16, True),
        (1535, 16, 24, BF16, False),  # the library is as fast
        (1536, 20, 24, BF16, False),  # rows of the input that are not aligned
        (1536, 16, 20, BF16, False),  # or of the output
        (1536, 16, 24, torch.float32, False),
    ],
)
def test_silu_gated_linear(
    rows: int, depth: int, size: int, dtype: torch.dtype, is_fused: bool, ran_fused: list[Any]
) -> None:
    x, weight = torch.randn(rows, depth).to(dtype), torch.randn(2 * size, depth).to(dtype)
    got = gated_linear_triton.silu_gated_linear(x, weight)
    assert len(ran_fused) == is_fused
    if not is_fused:
        assert torch.equal(got, silu_gated_linear(x, weight))


def test_a_bias_is_added_by_the_library(ran_fused: list[Any]) -> None:
    x, weight, bias = (torch.randn(*shape).to(BF16) for shape in ((1536, 16), (48, 16), (48,)))
    got = gated_linear_triton.silu_gated_linear(x, weight, bias)
    assert torch.equal(got, silu_gated_linear(x, weight, bias))
    assert not torch.equal(got, silu_gated_linear(x, weight))
    assert not ran_fused


@pytest.mark.parametrize(
    ("changes", "is_fused"),
    [
        ({}, True),
        ({"bias": True}, True),
        ({"rows": 1535}, False),
        ({"heads": 3}, False),  # a tile holds two
        ({"kv_heads": 1}, False),
        ({"head_dim": 64}, False),
        ({"depth": 20}, False),
        ({"dtype": torch.float32}, False),
    ],
)
def test_project_qkv(changes: dict[str, Any], is_fused: bool, ran_fused: list[Any]) -> None:
    inputs = qkv_inputs(**changes)
    got = qkv_linear_triton.project_qkv(*inputs)
    assert len(ran_fused) == is_fused
    if not is_fused:
        assert torch.equal(got, project_qkv(*qkv_inputs(**changes)))


def test_a_pool_with_places_beyond_32_bits(
    ran_fused: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = qkv_inputs()
    monkeypatch.setattr(qkv_linear_triton, "_MAX_OFFSET", inputs[5].numel() - 1)
    qkv_linear_triton.project_qkv(*inputs)
    assert not ran_fused


def qkv_inputs(
    rows: int = 1536,
    heads: int = 2,
    kv_heads: int = 2,
    head_dim: int = 128,
    depth: int = 16,
    dtype: torch.dtype = BF16,
    bias: bool = False,
) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(5)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    columns = (heads + 2 * kv_heads) * head_dim
    tables = randn(rows, 1, head_dim), randn(rows, 1, head_dim)
    pools = randn(rows + 256, kv_heads, head_dim), randn(rows + 256, kv_heads, head_dim)
    projection = randn(rows, depth), randn(columns, depth), randn(columns) if bias else None
    return *projection, *tables, *pools, torch.arange(rows)
