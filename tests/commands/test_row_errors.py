"""The errors that ``validate`` and ``features`` list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import call

from vlmbatch.commands.row_errors import RowErrors
from vlmbatch.errors import ErrorCode, OutputError, RowError
from vlmbatch.stats import RunStats
from vlmbatch.types import Row


def test_all_are_counted_and_written_and_a_few_kept_as_examples(tmp_path: Path) -> None:
    stats = RunStats()
    with RowErrors(stats, str(tmp_path / "e.jsonl")) as errors:
        for index in range(5):
            missing = RowError(ErrorCode.IMAGE_MISSING, f"no {index}")
            errors.add(Row(index, f"r{index}", index + 1, "m.jsonl"), missing)
        errors.add(Row(9, "r9", 10, "m.jsonl"), RowError(ErrorCode.PROMPT_INVALID, "no row"))
    assert stats.errors == {ErrorCode.IMAGE_MISSING: 5, ErrorCode.PROMPT_INVALID: 1}
    assert errors.examples == {
        "image_missing": [f"m.jsonl:{n + 1} (id r{n}): no {n}" for n in range(3)],
        "prompt_invalid": ["m.jsonl:10 (id r9): no row"],
    }
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [line["row_index"] for line in lines] == [0, 1, 2, 3, 4, 9]
    assert lines[0] == {
        "row_index": 0,
        "id": "r0",
        "file": "m.jsonl",
        "line": 1,
        "error_code": "image_missing",
        "error_message": "no 0",
    }


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "e.jsonl"
    with (
        pytest.raises(OutputError, match=r"cannot write .*: No such file"),
        RowErrors(RunStats(), str(path)),
    ):
        pass


@pytest.mark.parametrize("command", [("validate",), ("features", "-o", "features")])
def test_a_job_that_fails_leaves_no_summary_of_an_earlier_one(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.jsonl").write_text('{"prompt": "a"}\n')
    Path("model").mkdir()
    Path("s.json").write_text('{"exit_status": 0}')
    job = [command[0], "m.jsonl", *command[1:], "-m", "model", "--summary-json", "s.json"]
    assert call(job) == 2
    summary = json.loads(Path("s.json").read_text())
    assert summary["exit_status"] == 2 and "config.json" in summary["error"]
