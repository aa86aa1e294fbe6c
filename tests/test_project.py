"""What the project says of itself in several places is the same in all of them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from documentation import ROOT, section

from vlmbatch import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CI = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def steps(job: dict[str, Any]) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_every_python_that_is_promised_is_tested() -> None:
    prefix = "Programming Language :: Python :: "
    promised = [
        name.removeprefix(prefix)
        for name in PROJECT["classifiers"]
        if re.fullmatch(rf"{prefix}\d\.\d+", name)
    ]
    assert CI["jobs"]["test"]["strategy"]["matrix"]["python"] == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"


def test_the_lowest_and_the_highest_torch_are_tested() -> None:
    [wanted] = [name for name in PROJECT["dependencies"] if re.match(r"torch\b", name)]
    lowest = re.search(r">=([\d.]+)", wanted)
    matrix = CI["jobs"]["test"]["strategy"]["matrix"]
    assert lowest is not None
    assert [entry["torch"] for entry in matrix["include"]] == [f"=={lowest[1]}.*"]
    assert matrix["torch"] == [wanted.removeprefix("torch")]


def test_what_is_run_elsewhere_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = "\n".join(map(steps, CI["jobs"].values()))
    assert set(re.findall(r"\bmake ([a-z-]+)", commands)) <= targets
    assert all((ROOT / name).exists() for name in re.findall(r"\btests/\w+", commands))


def test_the_checks_before_a_commit_are_those_of_make_lint() -> None:
    [repo] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"  # the same versions, and nothing to download
    assert [hook["id"] for hook in repo["hooks"]] == ["ruff", "ruff-format", "mypy"]


def test_the_version_has_its_notes() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(.+?)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert __version__ in released or ".dev" in __version__


def test_the_layout_of_the_code_names_every_folder() -> None:
    text = section("CONTRIBUTING.md", "How the code is laid out")
    lines = re.findall(r"^    ( *)(\w+)/ ", text, re.MULTILINE)
    top = {name for indent, name in lines if not indent}
    within = {name for indent, name in lines if indent}
    assert all((ROOT / name).is_dir() for name in top)
    assert within == {path.parent.name for path in (ROOT / "vlmbatch").glob("*/__init__.py")}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_whole(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    for field in form["body"]:
        assert field["type"] == "markdown" or field["attributes"]["label"], path


def test_who_reports_a_bug_is_asked_for_the_doctor() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    [doctor] = [field for field in form["body"] if field.get("id") == "doctor"]
    assert doctor["validations"]["required"]
