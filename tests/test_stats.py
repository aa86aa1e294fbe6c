"""Counters of a run: the same whatever order rows end in."""

from __future__ import annotations

import io
import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from vlmbatch.display.summary import print_run_summary
from vlmbatch.errors import ErrorCode
from vlmbatch.stats import RunStats
from vlmbatch.types import Result

CODES = [ErrorCode.IMAGE_MISSING, ErrorCode.PROMPT_TOO_LONG, None]


def shown(stats: RunStats) -> str:
    stats.finish()
    console = Console(file=io.StringIO(), width=80, record=True)
    print_run_summary(stats, console, "out.parquet")
    return console.export_text().partition("output")[2]


@given(
    st.lists(st.sampled_from(CODES), min_size=1, max_size=20),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_the_example_of_a_code_is_its_first_row(
    codes: list[ErrorCode | None], num_parts: int, order: random.Random
) -> None:
    """Of rows that end in any order, some in an earlier run, and of parts that end in any order."""
    results = [
        Result(n, f"id-{n}", error_code=code, error_message=f"wrong in {n}")
        for n, code in enumerate(codes)
    ]
    whole, parts, together = RunStats(), [], RunStats()
    for result in order.sample(results, len(results)):
        whole.count(result, 0, resumed=order.random() < 0.5)
    for first in range(0, len(results), num_parts):
        part = RunStats(first_row=first)
        for place, result in enumerate(results[first : first + num_parts]):
            part.count(replace(result, index=place), 0)
        parts.append(part)
    for part in order.sample(parts, len(parts)):
        together.add(part)
    assert shown(whole) == shown(together)
    for code in {*codes} - {None}:
        first = codes.index(code)
        assert f"row {first} (id id-{first}): wrong in {first}" in shown(whole)
