"""Which graph a decode step runs on: few captures, each worth its time."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.engine.graph_sizes import GraphSizes, coarse_size, padded_size


def run(sizes: GraphSizes, steps: Iterable[int]) -> tuple[int, int]:
    """How many of the steps ran plainly, and how many captured a graph."""
    plain = captures = 0
    for num_seqs in steps:
        size = sizes.choose(num_seqs)
        if size is None:
            plain += 1
        elif size not in sizes.captured:
            captures += 1
            sizes.captured.add(size)
    return plain, captures


def chosen(sizes: GraphSizes, steps: Iterable[int]) -> list[int | None]:
    """What each of the steps runs on; what is to be captured is."""
    result = []
    for num_seqs in steps:
        result.append(sizes.choose(num_seqs))
        sizes.captured |= {size for size in result if size is not None}
    return result


def test_a_size_runs_plainly_then_is_captured_with_room_to_grow_then_repeated() -> None:
    sizes = GraphSizes(512)
    assert chosen(sizes, [60] * 4) == [None, 96, 96, 96]
    assert run(sizes, [64, 72, 88, 96]) == (0, 0)


def test_no_graph_is_larger_than_the_largest_batch_needs() -> None:
    sizes = GraphSizes(100)
    assert chosen(sizes, [90] * 2) == [None, 112]


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
    assert chosen(sizes, [130] * 11) == [512] * 8 + [None, 160, 160]
    assert run(sizes, [130] * 50) == (0, 0)
    assert chosen(sizes, [130] * 10)[-1] == padded_size(130) == 144


def test_a_size_whose_capture_failed_keeps_no_smaller_one_from_its_own() -> None:
    """As when memory runs out: the step is halved until one fits."""
    sizes = GraphSizes(512)
    assert [sizes.choose(60) for _ in range(2)] == [None, 96]
    sizes.refuse(96)
    assert [sizes.choose(60) for _ in range(3)] == [None] * 3
    assert chosen(sizes, [30] * 2) == [None, 64]
    assert chosen(sizes, [15] * 2) == [64, 64]


@settings(deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 600), st.booleans()), max_size=200))
def test_the_graph_holds_the_step_and_is_captured_once(steps: list[tuple[int, bool]]) -> None:
    sizes = GraphSizes(600)
    refused = set()
    for num_seqs, fails in steps:
        size = sizes.choose(num_seqs)
        assert size is None or num_seqs <= size <= coarse_size(600)
        if size is None or size in sizes.captured:
            continue
        assert size not in refused
        if fails:
            sizes.refuse(size)
            refused.add(size)
        else:
            sizes.captured.add(size)


@pytest.mark.parametrize("largest", [1, 7, 100, 512])
def test_buffers_for_the_coarse_size_hold_every_graph(largest: int) -> None:
    for num_seqs in range(1, largest + 1):
        assert num_seqs <= padded_size(num_seqs) <= coarse_size(num_seqs) <= coarse_size(largest)
