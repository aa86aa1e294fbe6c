"""What the README and the pages of docs/ say is so."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from documentation import ALL, PAGES, README, ROOT, anchors, links, section
from in_process import call

from vlmbatch import errors
from vlmbatch.commands.exits import CLOSED_PIPE, HUNG_UP, INTERRUPTED, TERMINATED
from vlmbatch.errors import ErrorCode
from vlmbatch.manifest.schema import RESULT_SCHEMA

ALLOWED_BYTES = 8_000  # what is read to its end
# Options that are not vlmbatch's.
OTHER_PROGRAMS = {"--blocks", "--array", "--gres", "--tasks", "--batch", "--schema"}


def table(page: str, title: str) -> list[list[str]]:
    """Cells of the section's table, without its head."""
    lines = [line for line in section(page, title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_error_codes() -> None:
    documented = {
        code.strip("`"): meaning for code, meaning in table("docs/output.md", "Error codes")
    }
    assert documented == {str(code): code.meaning for code in ErrorCode}


def test_exit_statuses() -> None:
    documented = {
        int(number)
        for cell, _ in table("docs/durability.md", "Exit statuses")
        for number in cell.split(",")
    }
    ours = {
        kind.exit_status
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.VlmbatchError)
    }
    assert documented == ours | {0, 1, HUNG_UP, INTERRUPTED, TERMINATED, CLOSED_PIPE}


def test_output_columns() -> None:
    documented = {
        name: kind
        for names, kind, _ in table("docs/output.md", "The output")
        for name in re.findall("`(.*?)`", names)
    }
    names = {pa.int64(): "int64", pa.int32(): "int32", pa.string(): "string"}
    assert documented == {field.name: names[field.type] for field in RESULT_SCHEMA}


def test_make_targets_and_files_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", ALL, re.MULTILINE)) <= targets
    assert {"help", "setup", "demo", "test", "lint"} <= targets
    named = re.findall(r"(?<![\w./])(?:configs|samples|docs|tests)/[\w./-]*\w", ALL)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_options_exist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for command in (
        ["run"],
        ["features"],
        ["validate"],
        ["serve"],
        ["status"],
        ["bench"],
        ["merge"],
        ["plan"],
        ["report"],
        ["compare"],
        ["verify"],
        [],
    ):
        assert call([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ALL))
    assert {option for option in options if option not in shown} == OTHER_PROGRAMS


def test_the_readme_is_read_to_its_end() -> None:
    assert len(README.encode()) <= ALLOWED_BYTES


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached = {"README.md"}
    waiting = ["README.md"]
    while waiting:
        new = ({target for target, _ in links(waiting.pop())} & set(PAGES)) - reached
        reached |= new
        waiting += new
    assert reached == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in links(page):
        assert (ROOT / target).exists(), target
        assert not anchor or anchor in anchors(target)


def test_the_tour_shows_the_sample_manifest() -> None:
    lines = (ROOT / "samples/manifest.jsonl").read_text().splitlines()
    assert f"    {lines[0]}\n" in section("README.md", "A minute's tour")
    for number, line in enumerate(lines, 1):
        row = json.loads(line)
        if row["answer"] is None:
            shown = f"samples/manifest.jsonl:{number} (id {row['id']})"
            assert shown in section("README.md", "A minute's tour")


def test_the_tour_shows_a_row_about_two_pictures() -> None:
    lines = (ROOT / "samples/manifest-qwen-vl.jsonl").read_text().splitlines()
    shown = [line for line in lines if "compare" in line][-1]
    assert f"    {shown}\n" in section("README.md", "A minute's tour")
    assert len(json.loads(shown)["image"]) == 2


def test_the_snippets_on_image_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    monkeypatch.chdir(tmp_path)
    code = re.findall(
        r"(?:^    .*\n)+", section("docs/features.md", "Image features"), re.MULTILINE
    )
    commands, python = (textwrap.dedent(block) for block in code)
    for command in commands.splitlines():
        name, *arguments = shlex.split(command)
        assert name == "vlmbatch"
        assert call([*arguments, "-q", "--image-workers", 0]) == 0
    assert pq.read_table("answers.parquet")["text"][0].as_py() == "92"
    exec(python, {})
    options = ["--image-input-type", "image_features", "-m", "samples/tiny-llava", "-q"]
    assert call(["validate", "mine.jsonl", "--decode-images", *options]) == 0
