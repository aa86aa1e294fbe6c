"""What ``import vlmbatch`` gives, and what it costs; the examples in the docstrings."""

from __future__ import annotations

import ast
import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import vlmbatch
from vlmbatch.api.llm import LLM

ROOT = Path(__file__).parents[2]


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import vlmbatch; "
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before} "
        "- set(sys.stdlib_module_names))); "
        "from vlmbatch import SamplingParams, ImagePixelData, RequestOutput, RowError; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines() == ["['vlmbatch']", "False"]


def test_every_exported_name_is_there() -> None:
    for name in vlmbatch.__all__:
        assert getattr(vlmbatch, name).__name__ == name
        assert name in dir(vlmbatch)
    with pytest.raises(AttributeError, match="no attribute 'LLMs'"):
        _ = vlmbatch.LLMs


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "vlmbatch/__init__.py").read_text())
    typed = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vlmbatch.")
        for alias in node.names
    }
    assert typed == vlmbatch._MODULES
    assert set(vlmbatch.__all__) == set(typed)


@pytest.mark.parametrize("name", [None, "generate", "chat", "stream"])
def test_docstring_examples(llm: LLM, name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    documented = LLM if name is None else getattr(LLM, name)
    names = {each: getattr(vlmbatch, each) for each in vlmbatch.__all__}
    globs = names if name is None else {**names, "llm": llm}
    (test,) = doctest.DocTestFinder(recurse=False).find(documented, "example", globs=globs)
    assert test.examples
    messages: list[str] = []
    doctest.DocTestRunner().run(test, out=messages.append)
    assert messages == []
