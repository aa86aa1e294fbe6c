"""These tests need a CUDA device, flash-attn and torchvision; elsewhere they are skipped.

With ``--require-gpu`` nothing is skipped: what is missing ends the tests before they begin.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def _missing() -> str:
    missing = []
    if not torch.cuda.is_available():
        missing.append("a CUDA device")
    if find_spec("flash_attn") is None:
        missing.append("flash-attn (pip install --no-build-isolation 'vlmbatch[cuda]')")
    if find_spec("torchvision") is None:
        missing.append("torchvision (pip install 'vlmbatch[cuda]')")
    return " and ".join(missing)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="fail where a GPU is missing")


def pytest_configure(config: pytest.Config) -> None:
    missing = _missing()
    if missing and config.getoption("--require-gpu", default=False):
        raise pytest.UsageError(f"the tests in tests/gpu need {missing}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = _missing()
    if not missing:
        return
    skip = pytest.mark.skip(reason=f"needs {missing}")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)
