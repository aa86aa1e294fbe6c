"""What processes that read other people's files have in common, on their own side."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Shared = np.ndarray[Any, np.dtype[np.uint8]]  # memory that the parent has mapped too

# A process that hangs is stopped by its parent. One whose parent died meanwhile ends itself, this
# much later.
ORPHAN_SECONDS = 2.0


def serve_parent(serve: Callable[[socket.socket, Shared], None]) -> None:
    """Serve until the other end of the socket closes."""
    # They reach a whole group of processes at once; ending a run is its parent's business.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    memory = mmap.mmap(int(sys.argv[2]), 0)
    with contextlib.suppress(EOFError, ConnectionError):
        serve(connection, np.frombuffer(memory, np.uint8))


def give_way() -> None:
    """Leave no core file, and let the kernel kill this process before others."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # not on this system
        Path("/proc/self/oom_score_adj").write_text("1000")


def forget_what_was_said() -> None:
    """Empty standard error: what decoders print must not pile up."""
    os.ftruncate(sys.stderr.fileno(), 0)
