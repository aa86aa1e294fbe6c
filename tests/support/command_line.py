"""Starting the command line as a program of its own."""

from __future__ import annotations

import os
import subprocess
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
