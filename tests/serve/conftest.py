from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import ServerProcess, serving

sys.path.insert(0, str(Path(__file__).parent))  # for load.py


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """The command with its defaults; tests leave nothing under way."""
    with serving() as started:
        yield started
