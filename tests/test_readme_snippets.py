"""Every Python snippet of the README runs as it stands, and prints what it says it prints.

A section's snippets run one after another, as a reader would type them. A comment at the end of a
line that prints, or comment lines at the end of a snippet, say what is printed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PRINTED = re.compile(r"^\s*print\(.*\)  # (.*)$|^# (.*)$")


def snippets() -> dict[str, list[str]]:
    """Snippets by the title of their section."""
    parts = _SECTION.split((ROOT / "README.md").read_text())
    found = {
        title: _SNIPPET.findall(text) for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    return {title: codes for title, codes in found.items() if codes}


SNIPPETS = snippets()


@pytest.mark.parametrize("title", SNIPPETS)
def test_snippets(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in SNIPPETS[title]:
        exec(compile(code, f"README.md, {title}", "exec"), names)
        matches = [_PRINTED.match(line) for line in code.splitlines()]
        expected = [match[1] or match[2] for match in matches if match]
        assert capsys.readouterr().out.splitlines() == expected
