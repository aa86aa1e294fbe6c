"""The README's section on the server: its snippets run, against a server on another port."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from server_process import ROOT, ServerProcess

SECTION = (ROOT / "README.md").read_text().partition("\n## Server\n")[2].partition("\n## ")[0]
BLOCKS = [
    re.sub(r"^    ", "", block, flags=re.MULTILINE)
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", SECTION, re.MULTILINE)
]
START, PYTHON, CURL = (block.strip("\n") for block in BLOCKS)


def test_the_server_is_started_as_the_section_says() -> None:
    # As ``serving`` starts it, but for the port.
    assert START == "vlmbatch serve -m samples/tiny-llava"


def test_the_python_snippet(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    code = PYTHON.replace("http://localhost:8000", server.url)
    exec(compile(code, "README.md, Server", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", PYTHON)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_snippet(server: ServerProcess) -> None:
    script = CURL.replace("http://localhost:8000", server.url)
    done = subprocess.run(
        ["bash", "-euc", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stdout)["choices"][0]["text"] == "92", done.stderr


def test_the_template_that_the_section_names_is_there() -> None:
    assert "configs/llava-1.5.jinja" in SECTION
    assert Path(ROOT / "configs/llava-1.5.jinja").is_file()
