"""Which part of a manifest ``--shard`` means, and what it cannot mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Run

from vlmbatch.commands.array_task import chosen_part
from vlmbatch.config import Part
from vlmbatch.errors import UsageError

NAMES = ("ID", "COUNT", "MIN", "MAX")


def slurm(*values: object) -> dict[str, str]:
    """What SLURM sets in a task: its id, how many there are, the lowest and the highest id."""
    return {f"SLURM_ARRAY_TASK_{n}": str(v) for n, v in zip(NAMES, values, strict=False)}


@pytest.mark.parametrize(
    ("shard", "environment", "part"),
    [
        ("0/4", {}, Part(0, 4)),
        (" 3/4 ", {}, Part(3, 4)),
        ("2/4", slurm(0, 16, 0, 15), Part(2, 4)),
        ("auto", slurm(0, 16, 0, 15), Part(0, 16)),  # --array=0-15
        ("auto", slurm(16, 16, 1, 16), Part(15, 16)),  # --array=1-16
        ("auto", slurm(8, 4, 0, 12), Part(2, 4)),  # --array=0-15:4
        ("auto", slurm(7, 1, 7, 7), Part(0, 1)),  # --array=7
        ("auto", {"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "5"}, Part(2, 5)),
    ],
)
def test_parts(shard: str, environment: dict[str, str], part: Part) -> None:
    assert chosen_part(shard, environment) == part


@pytest.mark.parametrize(
    ("shard", "environment", "message"),
    [
        ("5/4", {}, "of 4 they are 0/4 to 3/4, got 5/4"),
        ("4/4", {}, "parts are numbered from 0: of 4 they are 0/4 to 3/4, got 4/4"),
        ("0/0", {}, "from 1 to 99999 parts, got 0/0"),
        (
            "x",
            {},
            'must be I/N, such as 0/16 to 15/16 for 16 parts, or auto in a job array, got "x"',
        ),
        ("-1/4", {}, 'got "-1/4"'),
        ("1", {}, 'got "1"'),
        ("1/2/3", {}, 'got "1/2/3"'),
        ("auto", {}, "neither SLURM_ARRAY_TASK_ID .* nor JOB_COMPLETION_INDEX .* is set"),
        ("auto", slurm(3), "SLURM_ARRAY_TASK_ID is set, but SLURM_ARRAY_TASK_COUNT is not"),
        ("auto", slurm(3, 4, 0), "SLURM_ARRAY_TASK_ID is set, but SLURM_ARRAY_TASK_MAX is not"),
        ("auto", slurm("x", 4, 0, 3), 'SLURM_ARRAY_TASK_ID must be a whole number, got "x"'),
        ("auto", slurm(5, 3, 1, 6), "do not follow each other at equal distances"),  # 1,5,6
        ("auto", slurm(9, 4, 0, 3), "SLURM_ARRAY_TASK_ID=9, .*: .* 0/4 to 3/4, got 9/4"),
        ("auto", {"JOB_COMPLETION_INDEX": "3"}, "but JOB_COMPLETIONS is not set"),
        (
            "auto",
            {"JOB_COMPLETION_INDEX": "5", "JOB_COMPLETIONS": "5"},
            "JOB_COMPLETION_INDEX=5, JOB_COMPLETIONS=5: .* 0/5 to 4/5, got 5/5",
        ),
        (
            "auto",
            {"JOB_COMPLETION_INDEX": "0", **slurm(0, 1, 0, 0)},
            "both SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX are set",
        ),
    ],
)
def test_no_part(shard: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chosen_part(shard, environment)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "m.jsonl", "-o", "out/", "--shard", "5/4"], "0/4 to 3/4, got 5/4"),
        (["run", "m.jsonl", "-o", "out/", "--shard", ""], "shard must not be empty"),
        (["run", "m.jsonl", "--shard", "0/4"], "no output given"),
        (["run", "m.jsonl", "-o", "-", "--shard", "0/4"], "needs a folder, where each task"),
        (["run", "m.jsonl", "-o", "a.parquet", "--shard", "0/4"], "a.parquet names a file"),
        (["run", "m.jsonl", "-o", "old", "--shard", "0/4"], "old is a file, not a folder"),
        (["run", "m.jsonl", "-o", "no/out", "--shard", "0/4"], "there is no folder no"),
        (
            ["run", "m.jsonl", "-o", "out", "--shard", "0/4", "--shard-rows", "7"],
            "--shard 0/4 and --shard-rows 7 contradict each other",
        ),
        (
            ["run", "m.jsonl", "-o", "folder", "--shard", "0/4", "--summary-json", "folder/s"],
            "--summary-json folder/s lies in output folder",
        ),
        (["merge", "none", "-o", "a.parquet"], "none is no folder"),
        (["merge", "folder", "-o", "a.parquet"], "folder holds no parts of a run"),
        (["merge", "folder"], "no output given: add -o folder.parquet"),
        (["merge", "folder", "-o", "a.jsonl"], "choose a name that ends in .parquet"),
        (["merge", "folder", "-o", "folder/a.parquet"], "lies in the folder of parts folder"),
    ],
)
def test_refused(job: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "m.jsonl").write_text("{}\n")
    (tmp_path / "old").write_text("old")
    (tmp_path / "folder").mkdir()
    model = ("-m", "x") if arguments[0] == "run" else ()
    done = job("answered", *arguments, *model)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"m.jsonl", "old", "folder"}
