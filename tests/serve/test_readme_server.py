"""The page on the server: its snippets run, against a server on another port."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from documentation import ROOT, section
from server_process import ServerProcess

from vlmbatch.shipped import find_chat_template

SECTION = section("docs/server.md", "Server")
BLOCKS = [
    re.sub(r"^    ", "", block, flags=re.MULTILINE)
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", SECTION, re.MULTILINE)
]
START, PYTHON, CURL = (block.strip("\n") for block in BLOCKS)


def test_the_server_is_started_as_the_page_says() -> None:
    # As ``serving`` starts it, but for the port.
    assert START == "vlmbatch serve -m samples/tiny-llava"


def test_the_python_snippet(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    code = PYTHON.replace("http://localhost:8000", server.url)
    exec(compile(code, "docs/server.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", PYTHON)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_snippet(server: ServerProcess) -> None:
    script = CURL.replace("http://localhost:8000", server.url)
    done = subprocess.run(
        ["bash", "-euc", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stdout)["choices"][0]["text"] == "92", done.stderr


def test_the_template_that_the_page_names_is_there() -> None:
    assert "`--chat-template llava-1.5`" in SECTION
    assert find_chat_template("llava-1.5").is_file()
