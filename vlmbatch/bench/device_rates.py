"""What the device itself can do, measured on the spot: matrix products and copies."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from vlmbatch_kernels.fp8_linear import channel_linear, multiplies
from vlmbatch_kernels.quantized_rows import quantize_rows

from vlmbatch.costs.rates import DeviceRates

_SECONDS = 0.3  # of each measurement, after a first round that counts for nothing
_MIN_ROUNDS = 3


@torch.inference_mode()
def measure_rates(device: torch.device, dtype: torch.dtype, *, fp8: bool = False) -> DeviceRates:
    """The best of repeated products of square matrices, and of repeated copies.

    A copied byte counts twice: it is read and written. ``fp8``: products in e4m3 too, with
    activations of ``dtype``, where the device has them.
    """
    side = 8192 if device.type == "cuda" else 1024
    has_fp8 = fp8 and multiplies(device, dtype, side, side)
    rates = DeviceRates(
        _product_rate(device, dtype, side),
        _copy_rate(device),
        _fp8_product_rate(device, dtype, side) if has_fp8 else None,
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rates


def _product_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    product = torch.empty_like(left)
    seconds = _best_seconds(lambda: torch.mm(left, right, out=product), device)
    return 2 * side**3 / seconds


def _fp8_product_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    rows, weight = (
        quantize_rows(torch.randn(side, side, dtype=dtype, device=device)) for _ in range(2)
    )
    seconds = _best_seconds(lambda: channel_linear(rows, weight.values, weight.scales), device)
    return 2 * side**3 / seconds


def _copy_rate(device: torch.device) -> float:
    size = 2**30 if device.type == "cuda" else 2**28  # beyond any cache
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _best_seconds(lambda: target.copy_(source), device)
    return 2 * size / seconds


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Shortest time of ``work`` on the device, its launch included."""

    def timed() -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    timed()
    best, rounds, end = float("inf"), 0, time.perf_counter() + _SECONDS
    while rounds < _MIN_ROUNDS or time.perf_counter() < end:
        best = min(best, timed())
        rounds += 1
    return best
