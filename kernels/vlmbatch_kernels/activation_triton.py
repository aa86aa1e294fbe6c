"""Activations in Triton: each reads its input once and rounds once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


@triton.jit
def _silu_and_mul(x: tl.tensor, out: tl.tensor, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < SIZE
    gate = tl.load(x + row * 2 * SIZE + columns, mask=inside).to(tl.float32)
    up = tl.load(x + row * 2 * SIZE + SIZE + columns, mask=inside).to(tl.float32)
    tl.store(out + row * SIZE + columns, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def _quick_gelu(x: tl.tensor, out: tl.tensor, size: tl.tensor, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    value = tl.load(x + at, mask=inside).to(tl.float32)
    tl.store(out + at, value * tl.sigmoid(1.702 * value), mask=inside)


def silu_and_mul(x: Tensor) -> Tensor:
    assert x.ndim == 2 and x.shape[1] % 2 == 0, f"x of shape {tuple(x.shape)}"
    assert x.is_contiguous()
    rows, size = x.shape[0], x.shape[1] // 2
    out = x.new_empty(rows, size)
    grid = (rows, triton.cdiv(size, _BLOCK))
    _silu_and_mul[grid](x, out, SIZE=size, BLOCK=_BLOCK, num_warps=8)
    return out


def quick_gelu(x: Tensor) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), _BLOCK),)
    _quick_gelu[grid](x, out, x.numel(), BLOCK=_BLOCK, num_warps=8)
    return out
