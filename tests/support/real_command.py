"""``vlmbatch ARGUMENTS`` with the real engine, as a process of its own that need not import torch.

One server forks them for all tests of a process. Nothing in them is replaced, but the start of the
interpreter and the imports are not theirs: who tests those starts ``python -m vlmbatch``.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fast_command import Command, FastCommands

ROOT = Path(__file__).parents[2]
_PIPES = itertools.count()


@cache
def _server() -> tuple[FastCommands, Path]:
    """The server, and its folder. Both end with this process."""
    until_exit = contextlib.ExitStack()
    atexit.register(until_exit.close)
    folder = Path(until_exit.enter_context(tempfile.TemporaryDirectory(prefix="vlmbatch-tests-")))
    return until_exit.enter_context(FastCommands(folder, real=True)), folder


def named_pipe() -> Path:
    """A pipe that a command can have as ``stdin`` or ``stdout``; it is opened after its start."""
    path = _server()[1] / f"pipe-{next(_PIPES)}"
    os.mkfifo(path)
    return path


def start(
    *arguments: object,
    folder: Path = ROOT,
    variables: Mapping[str, str] = MappingProxyType({}),
    **how: Any,
) -> Command:
    """Start ``vlmbatch ARGUMENTS`` in ``folder``; ``how``: as ``FastCommands.start`` takes it."""
    server, _ = _server()
    variables = {"OMP_NUM_THREADS": "1", **variables}
    return server.start(*arguments, folder=folder, variables=variables, **how)


def run(
    *arguments: object, input: str | None = None, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``vlmbatch ARGUMENTS`` to its end, with ``input`` in a pipe."""
    if input is None:
        command = start(*arguments, **how)
    else:
        pipe = named_pipe()
        command = start(*arguments, stdin=pipe, **how)
        with contextlib.suppress(BrokenPipeError):  # it need not read all
            pipe.write_text(input)
    status = command.wait(120)
    return subprocess.CompletedProcess(
        [*map(str, arguments)], status, command.stdout, command.stderr
    )
