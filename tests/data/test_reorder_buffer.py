from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.data.reorder import ReorderBuffer
from vlmbatch.types import Result


@given(st.permutations(range(12)), st.integers(0, 5))
def test_any_order_comes_out_in_order(order, start):
    buffer = ReorderBuffer(start)
    out: list[int] = []
    for count, index in enumerate(order, 1):
        ready = [result.index for result in buffer.push(Result(start + index, ""))]
        out += ready
        assert not ready or ready[0] == start + len(out) - len(ready)
        assert buffer.lag == count - len(out)
        assert buffer.next_index == start + len(out)
    assert out == list(range(start, start + 12))


def test_ready_results_leave_at_once():
    buffer = ReorderBuffer()
    assert buffer.push(Result(1, "")) == []
    assert [result.index for result in buffer.push(Result(0, ""))] == [0, 1]
    assert [result.index for result in buffer.push(Result(2, ""))] == [2]


@pytest.mark.parametrize("again", [0, 2])
def test_no_row_twice(again):
    buffer = ReorderBuffer()
    buffer.push(Result(0, ""))
    buffer.push(Result(2, ""))
    with pytest.raises(AssertionError, match=f"row {again} came twice"):
        buffer.push(Result(again, ""))
