"""The second sample model through the real command, answer for answer beside Hugging Face."""

from __future__ import annotations

from typing import Any

import pytest
import real_command
from compare_qwen_vl import Compared, compare
from held_out import ALL_KINDS

NUM_ROWS = 3 * len(ALL_KINDS)


@pytest.fixture(scope="module")
def rows() -> list[Compared]:
    def run(command: list[str], check: bool) -> Any:
        """In a process that need not import torch."""
        done = real_command.run(*command[3:])
        assert check and done.returncode == 0, done.stderr

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compare_qwen_vl.subprocess.run", run)
        return compare(NUM_ROWS, seed=1_200_000_000)


def test_greedy_answers_equal_hugging_face_on_every_row(rows: list[Compared]) -> None:
    assert len(rows) == NUM_ROWS
    assert [row.ours for row in rows] == [row.theirs for row in rows]


def test_nearly_all_answers_are_exactly_right(rows: list[Compared]) -> None:
    assert sum(row.ours[0] == row.expected for row in rows) >= 0.95 * NUM_ROWS
