"""The page on batch files does what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap
from pathlib import Path

from command_line import environment, installed_in
from documentation import ROOT, section

from vlmbatch.images.fetch import FetchLimits

SECTION = section("docs/batch-files.md", "OpenAI batch files")


def test_the_snippet(tmp_path: Path) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    [snippet] = re.findall(r"(?:^    .*\n)+", SECTION, re.MULTILINE)
    lines = textwrap.dedent(snippet).splitlines()
    queries = [line for line in lines if line.startswith("jq ")]
    commands = "\n".join(line for line in lines if line not in queries)
    path = tmp_path / "bin"
    path.mkdir()
    installed_in(path)
    done = subprocess.run(
        ["bash", "-c", commands],
        cwd=tmp_path,
        env=environment(
            PATH=f"{path}:{os.environ['PATH']}", PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"
        ),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    results, errors = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("results.jsonl", "results.errors.jsonl")
    )
    # What the two queries print; jq is not needed for it.
    assert [query.split()[-1] for query in queries] == ["results.jsonl", "results.errors.jsonl"]
    [number, text] = results
    assert number["custom_id"] == "number"
    assert number["response"]["body"]["choices"][0]["message"]["content"] == "92"
    assert text["response"]["body"]["object"] == "text_completion"
    [error] = errors
    assert error["response"]["body"]["error"]["message"].startswith(
        "'best_of' with 2 is not supported"
    )


def test_the_limits() -> None:
    limits = FetchLimits()
    text = " ".join(SECTION.split())
    assert (
        f"{limits.max_bytes // 2**20} MiB, {limits.timeout_s:g} seconds and "
        f"{limits.max_redirects} redirects" in text
    )
