"""Decoding over shared prefixes on the GPU: the kernels, and their capture in a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import triton_form
from shared_cases import SHARED_CASES, check_shared, make_shared
from torch import Tensor
from vlmbatch_kernels.shared_decode import shared_decode


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SHARED_CASES)
def test_error_is_at_most_twice_torchs(name: str, dtype: torch.dtype) -> None:
    check_shared(name, dtype, "cuda")


@pytest.mark.parametrize("name", SHARED_CASES)
def test_computes_in_float32(name: str) -> None:
    generator = torch.Generator()
    generator.seed()
    inputs = SHARED_CASES[name](generator)
    want = shared_decode(*inputs)
    got = triton_form(shared_decode)(*on_gpu(inputs)).cpu()
    assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize("size", [64, 80, 128, 256])
@pytest.mark.parametrize("heads", [(2, 2), (14, 2), (32, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_fits_every_head_size(heads: tuple[int, int], size: int, dtype: torch.dtype) -> None:
    make = make_shared([700] * 17, [(0, 16, 672)], (*heads, size))
    inputs = [x.to(dtype) if is_float(x) else x for x in make(torch.Generator())]
    want = shared_decode(*(x.float() if is_float(x) else x for x in inputs))
    got = triton_form(shared_decode)(*on_gpu(inputs)).cpu()
    assert (got.float() - want).norm() <= 1e-2 * want.norm()


def test_a_step_is_captured_after_one_of_other_tiles() -> None:
    """Nothing is left to compile or load, and a replay reads the tiles of its own step."""
    heads = (4, 2, 64)
    small = make_shared([300] * 5, [(1, 3, 160)], heads)(torch.Generator())
    triton_form(shared_decode)(*on_gpu(small))
    totals = [900 + i for i in range(200)]
    many = make_shared(totals, [(i, 10, 800) for i in range(0, 200, 10)], heads)
    inputs = on_gpu(many(torch.Generator()))
    lens, tiles = inputs[5:7]
    of_step = lens.clone(), tiles.clone()
    lens.zero_()
    tiles.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = triton_form(shared_decode)(*inputs)
    lens.copy_(of_step[0])
    tiles.copy_(of_step[1])
    graph.replay()
    want = shared_decode(*(x.cpu() if isinstance(x, Tensor) else x for x in inputs))
    assert (got.cpu() - want).norm() <= 1e-5 * want.norm()


def is_float(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def on_gpu(inputs: list[object] | tuple[object, ...]) -> list[object]:
    return [x.cuda() if isinstance(x, Tensor) else x for x in inputs]
