"""A tensor loaded piece by piece fills its slot as it does in one go."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.models.parallel import Share
from vlmbatch.models.pinned_loader import pieces
from vlmbatch.models.weight_slot import WeightSlot


@st.composite
def checkpoint_tensors(draw: st.DrawFn) -> tuple[torch.Tensor, Share | None, int]:
    """A tensor of distinct numbers, and which part of it a rank takes."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    dim = draw(st.integers(0, min(1, len(shape) - 1)))
    if draw(st.booleans()):
        return tensor, None, 0
    start = draw(st.integers(0, shape[dim] - 1))
    count = draw(st.integers(1, shape[dim] - start))
    return tensor, Share(shape[dim], start, count), dim


@given(checkpoint_tensors(), st.integers(1, 300))
def test_pieces_are_small_and_together_the_whole(
    given: tuple[torch.Tensor, Share | None, int], num_bytes: int
) -> None:
    tensor, share, dim = given
    part = tensor if share is None else tensor.narrow(dim, share.start, share.count)
    slots = [WeightSlot(torch.full_like(part, -1), share, dim) for _ in range(2)]
    slots[0].load(tensor)
    for rows, target in pieces(tensor, slots[1], num_bytes):
        assert rows.nbytes <= num_bytes or len(rows) == 1
        assert rows.is_contiguous()
        target.load(rows)
    assert torch.equal(slots[1].target, slots[0].target)


def test_rows_of_other_ranks_are_not_read() -> None:
    tensor = torch.arange(12.0).view(6, 2)
    slot = WeightSlot(torch.empty(2, 2), Share(6, 4, 2))
    assert [part.tolist() for part, _ in pieces(tensor, slot, 8)] == [[[8.0, 9.0]], [[10.0, 11.0]]]


@pytest.mark.parametrize("num_bytes", [1, 1000])
def test_the_pieces_of_a_vector_are_its_numbers(num_bytes: int) -> None:
    slot = WeightSlot(torch.zeros(5, dtype=torch.bfloat16))
    for part, target in pieces(torch.arange(5.0), slot, num_bytes):
        target.load(part)
    assert slot.target.tolist() == [0, 1, 2, 3, 4]


def test_rows_are_quantized_piece_by_piece_as_in_one_go() -> None:
    tensor, share = torch.randn(37, 64), Share(64, 16, 32)
    filled = []
    for num_bytes in (1, 9 * 64 * 4, tensor.nbytes):
        target, scales = torch.empty(37, 32, dtype=torch.float8_e4m3fn), torch.empty(37, 1)
        slot = WeightSlot(target, share, 1, row_scales=scales)
        for part, place in pieces(tensor, slot, num_bytes):
            place.load(part)
        filled.append(target.float() * scales)
    assert torch.equal(filled[0], filled[2]) and torch.equal(filled[1], filled[2])
    assert (filled[0] - tensor[:, 16:48]).norm() <= 0.05 * tensor[:, 16:48].norm()
