"""Which graph a decode step runs on: few captures, each worth its time."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.engine.decode_graphs import GraphSizes, coarse_size, padded_size


def run(sizes: GraphSizes, steps: Iterable[int]) -> tuple[int, int]:
    """How many of the steps ran plainly, and how many captured a graph."""
    plain = captures = 0
    for num_seqs in steps:
        before = len(sizes.captured)
        plain += sizes.choose(num_seqs) is None
        captures += len(sizes.captured) - before
    return plain, captures


def test_a_size_runs_plainly_then_is_captured_with_room_to_grow_then_repeated() -> None:
    sizes = GraphSizes(512)
    assert [sizes.choose(60) for _ in range(4)] == [None, 96, 96, 96]
    assert run(sizes, [64, 72, 88, 96]) == (0, 0)


def test_no_graph_is_larger_than_the_largest_batch_needs() -> None:
    sizes = GraphSizes(100)
    assert [sizes.choose(90) for _ in range(2)] == [None, 112]


def test_a_batch_that_shrinks_captures_nothing_on_its_way() -> None:
    sizes = GraphSizes(512)
    run(sizes, [512] * 3)
    assert run(sizes, [444, 349, 261, 173, 85, 7]) == (0, 0)
    assert sizes.choose(7) == 512


def test_the_smallest_graph_that_is_large_enough_is_borrowed() -> None:
    sizes = GraphSizes(512)
    run(sizes, [10] * 2 + [43] * 2 + [512] * 2)
    assert sizes.captured == {16, 64, 512}
    assert sizes.choose(17) == 64


def test_a_size_that_goes_on_gets_a_graph_of_its_own_the_sooner_the_larger_the_other() -> None:
    sizes = GraphSizes(512)
    run(sizes, [512] * 2)
    assert [sizes.choose(130) for _ in range(11)] == [512] * 8 + [None, 160, 160]
    assert run(sizes, [130] * 50) == (0, 0)
    assert [sizes.choose(130) for _ in range(10)][-1] == padded_size(130) == 144


@given(steps=st.lists(st.integers(1, 600), max_size=200))
def test_the_graph_holds_the_step_and_is_captured_once(steps: list[int]) -> None:
    sizes = GraphSizes(600)
    for num_seqs in steps:
        before = set(sizes.captured)
        size = sizes.choose(num_seqs)
        assert size is None or num_seqs <= size <= coarse_size(600)
        assert sizes.captured - before <= {size}
        assert size is None or size in sizes.captured


@pytest.mark.parametrize("largest", [1, 7, 100, 512])
def test_buffers_for_the_coarse_size_hold_every_graph(largest: int) -> None:
    for num_seqs in range(1, largest + 1):
        assert num_seqs <= padded_size(num_seqs) <= coarse_size(num_seqs) <= coarse_size(largest)
