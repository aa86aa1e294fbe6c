from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import FAKE_JOB, Run, environment


@pytest.fixture
def job(tmp_path: Path) -> Run:
    """Run the command line in ``tmp_path`` over a job that behaves as the first argument says."""

    def run(behaviour: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(FAKE_JOB), behaviour, *arguments],
            cwd=tmp_path,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def own_process() -> Iterator[None]:
    """Give back the log and signal handlers that calling ``main`` here takes over."""
    root, handler = logging.getLogger(), signal.getsignal(signal.SIGTERM)
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("vlmbatch").setLevel(logging.NOTSET)
    logging.captureWarnings(False)
    signal.signal(signal.SIGTERM, handler)
