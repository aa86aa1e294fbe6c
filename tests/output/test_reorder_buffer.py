from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.durable.spill import Spill
from vlmbatch.output.reorder import ReorderBuffer
from vlmbatch.types import Result


def buffer_of(loose: int = 3, start: int = 0) -> ReorderBuffer:
    return ReorderBuffer(Spill(100, loose=loose), start)


def pushed(buffer: ReorderBuffer, index: int) -> list[int]:
    buffer.push(Result(index, str(index)))
    return [int(result.id) for result in buffer.ready()]


@given(st.permutations(range(12)), st.integers(0, 5))
def test_any_order_comes_out_in_order(order, start):
    buffer = buffer_of(start=start)
    out: list[int] = []
    for count, index in enumerate(order, 1):
        ready = pushed(buffer, start + index)
        out += ready
        assert not ready or ready[0] == start + len(out) - len(ready)
        assert buffer.lag == count - len(out)
        assert not buffer.is_ready
    assert out == list(range(start, start + 12))


def test_ready_results_leave_at_once():
    buffer = buffer_of()
    assert pushed(buffer, 1) == []
    assert pushed(buffer, 0) == [0, 1]
    assert pushed(buffer, 2) == [2]


def test_those_that_can_leave_may_be_taken_a_few_at_a_time():
    buffer = buffer_of(loose=0)
    for index in (2, 1, 3, 0):
        buffer.push(Result(index, ""))
    assert next(buffer.ready()).index == 0
    assert buffer.is_ready and buffer.lag == 3
    assert [result.index for result in buffer.ready()] == [1, 2, 3]


@pytest.mark.parametrize("again", [0, 2])
def test_no_row_twice(again):
    buffer = buffer_of()
    pushed(buffer, 0)
    pushed(buffer, 2)
    with pytest.raises(AssertionError, match=f"row {again} came twice"):
        buffer.push(Result(again, ""))
