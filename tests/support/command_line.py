"""Starting the command line as a program of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FAKE_JOB = Path(__file__).with_name("fake_job.py")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(**variables: str) -> dict[str, str]:
    """This environment without what would change the command line's output."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("VLMBATCH_")}
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "COLUMNS", "NO_COLOR"):
        kept.pop(name, None)
    return {**kept, **variables}


def installed_in(folder: Path) -> Path:
    """``vlmbatch`` as an executable file in ``folder``, for scripts that call it."""
    script = folder / "vlmbatch"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m vlmbatch "$@"\n')
    script.chmod(0o755)
    return script
