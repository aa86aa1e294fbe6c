"""These tests need a CUDA device and flash-attn; elsewhere they are skipped, and say so."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = []
    if not torch.cuda.is_available():
        missing.append("a CUDA device")
    if find_spec("flash_attn") is None:
        missing.append("flash-attn (pip install 'vlmbatch[cuda]')")
    if not missing:
        return
    skip = pytest.mark.skip(reason=f"needs {' and '.join(missing)}")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)
