"""Every Python snippet of the README and of docs/ runs as it stands, and prints what it says.

A section's snippets run one after another, as a reader would type them. A comment at the end of a
line that prints, or comment lines at the end of a snippet, say what is printed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from documentation import PAGES, ROOT, sections

_SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PRINTED = re.compile(r"^\s*print\(.*\)  # (.*)$|^# (.*)$")
SNIPPETS = {
    f"{page}, {title}": codes
    for page in PAGES
    for title, text in sections(page).items()
    if (codes := _SNIPPET.findall(text))
}


@pytest.mark.parametrize("title", SNIPPETS)
def test_snippets(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in SNIPPETS[title]:
        exec(compile(code, title, "exec"), names)
        matches = [_PRINTED.match(line) for line in code.splitlines()]
        expected = [match[1] or match[2] for match in matches if match]
        assert capsys.readouterr().out.splitlines() == expected
