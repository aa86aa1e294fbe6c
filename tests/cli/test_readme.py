"""What the README says is so."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import call

from vlmbatch import errors
from vlmbatch.commands.exits import CLOSED_PIPE, HUNG_UP, INTERRUPTED, TERMINATED
from vlmbatch.data.schema import RESULT_SCHEMA
from vlmbatch.errors import ErrorCode

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(title: str) -> list[list[str]]:
    """Cells of the section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_error_codes() -> None:
    documented = {code.strip("`"): meaning for code, meaning in table("Error codes")}
    assert documented == {str(code): code.meaning for code in ErrorCode}


def test_exit_statuses() -> None:
    documented = {int(number) for cell, _ in table("Exit statuses") for number in cell.split(",")}
    ours = {
        kind.exit_status
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.VlmbatchError)
    }
    assert documented == ours | {0, 1, HUNG_UP, INTERRUPTED, TERMINATED, CLOSED_PIPE}


def test_output_columns() -> None:
    documented = {
        name: kind
        for names, kind, _ in table("The output")
        for name in re.findall("`(.*?)`", names)
    }
    names = {pa.int64(): "int64", pa.int32(): "int32", pa.string(): "string"}
    assert documented == {field.name: names[field.type] for field in RESULT_SCHEMA}


def test_make_targets_and_files_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b", README)) <= targets
    assert {"help", "setup", "demo", "test", "lint"} <= targets
    named = re.findall(r"(?:configs|samples|docs|tests)/[\w./-]*\w", README)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_options_exist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for command in (["run"], ["features"], ["validate"], ["serve"], ["status"], ["bench"], []):
        assert call([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert {option for option in options if option not in shown} == set()


def test_the_tour_shows_the_sample_manifest() -> None:
    lines = (ROOT / "samples/manifest.jsonl").read_text().splitlines()
    assert f"    {lines[0]}\n" in section("A minute's tour")
    for number, line in enumerate(lines, 1):
        row = json.loads(line)
        if row["answer"] is None:
            shown = f"samples/manifest.jsonl:{number} (id {row['id']})"
            assert shown in section("A minute's tour")


def test_the_snippets_on_image_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"(?:^    .*\n)+", section("Image features"), re.MULTILINE)
    commands, python = (textwrap.dedent(block) for block in code)
    for command in commands.splitlines():
        name, *arguments = shlex.split(command)
        assert name == "vlmbatch"
        assert call([*arguments, "-q", "--image-workers", 0]) == 0
    assert pq.read_table("answers.parquet")["text"][0].as_py() == "92"
    exec(python, {})
    options = ["--image-input-type", "image_features", "-m", "samples/tiny-llava", "-q"]
    assert call(["validate", "mine.jsonl", "--decode-images", *options]) == 0
