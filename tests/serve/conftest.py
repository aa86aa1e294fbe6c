from __future__ import annotations

from collections.abc import Iterator

import pytest
from server_process import ServerProcess, serving


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """The command with its defaults; tests leave nothing under way."""
    with serving() as started:
        yield started
