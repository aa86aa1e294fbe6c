"""e4m3 on the CPU: what the twins compute. For the kernels see test_triton_interpreted."""

from __future__ import annotations

import pytest
import torch
from fp8_cases import (
    make_block_weight,
)
from hypothesis import given
from hypothesis import strategies as st
from vlmbatch_kernels.fp8_linear import block_linear, channel_linear, dequantize, multiplies
from vlmbatch_kernels.quantized_rows import quantize_rows, silu_and_mul_quantized


@given(
    st.integers(1, 5),
    st.sampled_from([None, 16]),
    st.floats(-38, 38),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_each_number_is_half_a_step_away_at_most(
    rows: int, group: int | None, exponent: float, dtype: torch.dtype
) -> None:
    x = (torch.randn(rows, 48) * 10.0**exponent).clamp(-3e38, 3e38).to(dtype)
    quantized = quantize_rows(x, group)
    groups = 1 if group is None else 3
    assert quantized.scales.shape == (rows, groups)
    off = (quantized.dequantized() - x.float()).abs()
    largest = x.float().view(rows, groups, -1).abs().amax(2)
    largest = largest.repeat_interleave(48 // groups, 1)
    # Three bits behind the point; below 2**-6 of 448 there are fewer.
    allowed = torch.maximum(x.float().abs() * 2**-4, largest / 448 * 2**-10).clamp(min=1e-12)
    assert (off <= allowed * 1.001).all()


def test_rows_do_not_depend_on_each_other() -> None:
    x = torch.randn(9, 256)
    whole = quantize_rows(x)
    for index in range(9):
        one = quantize_rows(x[index : index + 1])
        assert torch.equal(one.values, whole.values[index : index + 1])
        assert torch.equal(one.scales, whole.scales[index : index + 1])


def test_gated_products_are_rounded_before_they_are_quantized() -> None:
    x = torch.randn(3, 128).bfloat16()
    gate, up = x.chunk(2, 1)
    expected = quantize_rows(torch.nn.functional.silu(gate) * up)
    assert torch.equal(silu_and_mul_quantized(x).values, expected.values)


@pytest.mark.parametrize("bias", [False, True])
def test_products_with_a_scale_a_channel(bias: bool) -> None:
    """torch has them on the CPU as well."""
    weight = quantize_rows(torch.randn(48, 64) / 8)
    rows = quantize_rows(torch.randn(5, 64).bfloat16())
    added = torch.randn(48).bfloat16() if bias else None
    expected = rows.dequantized() @ weight.dequantized().T + (0 if added is None else added.float())
    got = channel_linear(rows, weight.values, weight.scales, added)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=1e-2, atol=1e-2)


def test_products_with_a_scale_a_block() -> None:
    values, scales = make_block_weight(256, 384)
    rows = quantize_rows(torch.randn(5, 384), 128)
    expected = torch.zeros(5, 256)
    for n in range(2):
        for k in range(3):
            left, right = slice(n * 128, n * 128 + 128), slice(k * 128, k * 128 + 128)
            product = rows.values[:, right].float() @ values[left, right].float().T
            expected[:, left] += product * rows.scales[:, k : k + 1] * scales[n, k]
    torch.testing.assert_close(block_linear(rows, values, scales), expected)
    assert not multiplies(torch.device("cpu"), torch.bfloat16, 256, 384)


def test_the_last_blocks_may_be_smaller() -> None:
    values = torch.randn(130, 200).to(torch.float8_e4m3fn)
    scales = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    got = dequantize(values, scales, torch.float32)
    assert torch.equal(got[:128, :128], values[:128, :128].float())
    assert torch.equal(got[:128, 128:], values[:128, 128:].float() * 2)
    assert torch.equal(got[128:, :128], values[128:, :128].float() * 4)
    assert torch.equal(got[128:, 128:], values[128:, 128:].float() * 8)
