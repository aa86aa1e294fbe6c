from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from command_line import Run
from fast_command import FastCommands


@pytest.fixture
def job(commands: FastCommands, tmp_path: Path) -> Run:
    """Run the command line in ``tmp_path`` over a job that behaves as the first argument says."""

    def run(behaviour: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        done = commands.run(*arguments, folder=tmp_path, job=behaviour, variables=variables)
        return subprocess.CompletedProcess(arguments, done.wait(), done.stdout, done.stderr)

    return run
