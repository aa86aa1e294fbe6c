"""The Triton kernels on the CPU, in Triton's interpreter. On a GPU see tests/gpu.

They run in float16, because the interpreter cuts bfloat16 off instead of rounding it.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from kernel_cases import (
    CASES,
    check,
    check_greedy_tokens,
    check_mask_tokens,
    check_normalize_patches,
    check_project_qkv,
    check_resample,
    check_silu_gated_linear,
)

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs triton (pip install triton, on Linux)"
)


@pytest.mark.parametrize("name", CASES)
def test_error_is_at_most_twice_torchs(interpreter: ProcessPoolExecutor, name: str) -> None:
    interpreter.submit(check, name, torch.float16, "cpu").result()


def test_images(interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(check_normalize_patches, (2, 13, 29), 3, torch.float16, "cpu").result()


def test_greedy_tokens(interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(check_greedy_tokens, 4, 4099, torch.float16, "cpu").result()


def test_mask_tokens(interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(check_mask_tokens, 4, 4099, torch.float16, "cpu").result()


def test_resample(interpreter: ProcessPoolExecutor) -> None:
    shapes = [(13, 70, 9, 5), (21, 9, 10, 4), (5, 80, 70, 5), (1, 3, 2, 2), (9, 6, 9, 3)]
    interpreter.submit(check_resample, shapes, "cpu").result()


@pytest.mark.parametrize("shape", [(37, 64, 48), (130, 72, 200), (1, 8, 1032)])
def test_silu_gated_linear(interpreter: ProcessPoolExecutor, shape: tuple[int, int, int]) -> None:
    tiles = {"block": (64, 32, 32), "group": 2, "stages": 1, "num_warps": 4}
    interpreter.submit(check_silu_gated_linear, shape, torch.float16, "cpu", **tiles).result()


@pytest.mark.parametrize(("bias", "norms"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("sizes", [(37, 64, 2, 2), (130, 72, 6, 2)])
def test_project_qkv(
    interpreter: ProcessPoolExecutor, sizes: tuple[int, int, int, int], bias: bool, norms: bool
) -> None:
    tiles: dict[str, Any] = {"block": (64, 32), "group": 2, "stages": 1, "num_warps": 4}
    case = (sizes, 16, torch.float16, "cpu", bias, norms)
    interpreter.submit(partial(check_project_qkv, *case, **tiles)).result()
