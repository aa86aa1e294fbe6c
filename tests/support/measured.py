"""The command line in a process of its own, and the memory that it took."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from command_line import environment

MEMORY_OF_A_START = 110 * 2**20  # Python and what `validate` imports
_MAIN = """\
import re, sys
from vlmbatch.cli import main
status = main()
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(status)
"""


def measure(arguments: Sequence[object]) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run ``vlmbatch ARGUMENTS``; its end, and its peak of resident memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", _MAIN, *map(str, arguments)],
        env=environment(OMP_NUM_THREADS="1"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done, int(done.stdout) * 1024
