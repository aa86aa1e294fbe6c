from __future__ import annotations

import logging
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Run
from fast_command import FastCommands


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastCommands]:
    with FastCommands(tmp_path_factory.mktemp("commands")) as server:
        yield server


@pytest.fixture
def job(commands: FastCommands, tmp_path: Path) -> Run:
    """Run the command line in ``tmp_path`` over a job that behaves as the first argument says."""

    def run(behaviour: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        done = commands.run(*arguments, folder=tmp_path, job=behaviour, variables=variables)
        return subprocess.CompletedProcess(arguments, done.wait(), done.stdout, done.stderr)

    return run


@pytest.fixture
def own_process() -> Iterator[None]:
    """Give back the log and signal handlers that calling ``main`` here takes over."""
    root = logging.getLogger()
    signals = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("vlmbatch").setLevel(logging.NOTSET)
    logging.captureWarnings(False)
    for each, handler in signals.items():
        signal.signal(each, handler)
