from __future__ import annotations

import sys
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[2] / "samples"
sys.path.insert(0, str(SAMPLES))  # its scripts import one another by their bare names


@pytest.fixture(scope="session")
def samples() -> Path:
    return SAMPLES
