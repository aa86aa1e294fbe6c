"""The Triton kernels on the CPU, in Triton's interpreter. On a GPU see tests/gpu.

They run in float16, because the interpreter cuts bfloat16 off instead of rounding it; and what is
e4m3 on a GPU is stored as float16, because it loses the carry of numbers that round up to a power
of two in e4m3 (31.5 becomes 16). They are in one file because each worker of the tests that has
some starts an interpreter.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any

import fp8_kv_cases
import pytest
import torch
from fp8_cases import KERNELS, SIZES, check_block_linear, check_quantized_rows
from fp8_kv_cases import check_read, check_rotary
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
from shared_cases import SHARED_CASES, check_shared

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs triton (pip install triton, on Linux)"
)

# "mha-64" and "mha-128" differ from "gqa-64" in their numbers of heads alone.
SHARED = [name for name in SHARED_CASES if name not in ("mha-64", "mha-128")]
E4M3_READS = [
    "paged_attention-chunks-gqa-24",
    "paged_attention-softcap",
    "paged_decode-gqa-24",
    "paged_decode-pages-of-16",
    "shared_decode-gqa-24",
]


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
    shapes = [(13, 70, 9, 5), (21, 9, 10, 4), (5, 80, 70, 5), (1, 3, 2, 2)]
    shapes += [(9, 72, 67, 8), (9, 6, 9, 3), (6, 40, 5, 12)]
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


@pytest.mark.parametrize("name", SHARED)
def test_shared_prefixes(interpreter: ProcessPoolExecutor, name: str) -> None:
    interpreter.submit(check_shared, name, torch.float16, "cpu").result()


@pytest.mark.parametrize("name", E4M3_READS)
def test_reads_of_e4m3(interpreter: ProcessPoolExecutor, name: str) -> None:
    interpreter.submit(check_read, name, torch.float16, "cpu").result()


@pytest.mark.parametrize(
    ("name", "factor"),
    [("paged_attention-pages-of-16", 2.0**60), ("shared_decode-pages-of-16", 2.0**-60)],
)
def test_reads_of_e4m3_in_bfloat16(
    interpreter: ProcessPoolExecutor, name: str, factor: float
) -> None:
    """Queries become float16, whose range is less; the interpreter cuts the results off."""
    interpreter.submit(check_read, name, torch.bfloat16, "cpu", factor, times=4).result()


@pytest.mark.parametrize("name", ["mqa-24", "norms-24"])
def test_rotary_to_e4m3(interpreter: ProcessPoolExecutor, name: str) -> None:
    interpreter.submit(check_rotary, name, torch.float16, "cpu", torch.float16).result()


@pytest.mark.parametrize("norms", [False, True])
def test_fused_projection_to_e4m3(interpreter: ProcessPoolExecutor, norms: bool) -> None:
    tiles: dict[str, Any] = {"block": (64, 32), "group": 2, "stages": 1, "num_warps": 4}
    sizes = (70, 72, 6, 2)
    case = (sizes, 16, torch.float16, "cpu", torch.float16, not norms, norms)
    interpreter.submit(partial(fp8_kv_cases.check_project_qkv, *case, **tiles)).result()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", KERNELS)
def test_quantized_rows(
    interpreter: ProcessPoolExecutor, name: str, size: tuple[int, int, int | None]
) -> None:
    case = (name, size, torch.float16, "cpu")
    interpreter.submit(check_quantized_rows, *case, torch.float16).result()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 128, 256), (37, 256, 384), (130, 384, 128)])
def test_products_of_blocks(
    interpreter: ProcessPoolExecutor, shape: tuple[int, int, int], bias: bool
) -> None:
    interpreter.submit(check_block_linear, shape, bias, torch.float16, "cpu").result()
