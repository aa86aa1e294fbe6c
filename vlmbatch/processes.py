"""Processes of our own: what they are given, and what they died of."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import tempfile
import time
from pathlib import Path

_TAIL_BYTES = 4096


def anonymous_file(name: str) -> int:
    """Descriptor of an empty file in memory (on disk where the system has no such files).

    It has no path: it goes with the last process that has it open, however that process ends.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def error_file(name: str) -> int:
    """An ``anonymous_file`` as a process's standard error; ``last_words`` reads it."""
    descriptor = anonymous_file(name)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
    return descriptor


def beyond_standard(descriptor: int, closing: contextlib.ExitStack) -> int:
    """A duplicate that is above 2: below, the process has its standard streams.

    In a program that has closed its own, as daemons do, files get these numbers.
    """
    duplicate = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    closing.callback(os.close, duplicate)
    return duplicate


def search_path() -> str:
    """``PYTHONPATH`` with which a process can import what this one can."""
    return os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)


def seconds_since_start() -> float:
    """How long this process has been running; 0 where the system does not tell (see proc(5))."""
    try:
        fields = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # since the boot, as the 22nd field
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)


def cause_of_death(status: int | None, stderr: int) -> str:
    """In words: a process's exit status as ``Popen`` gives it, and what it wrote last.

    None: it has not ended.
    """
    if status is None:
        return "it closed its connection"
    if status < 0:
        hint = ": memory may be short" if status == -9 else ""
        return f"signal {-status}{hint}"
    size = os.fstat(stderr).st_size
    tail = os.pread(stderr, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
    last_words = tail.decode(errors="replace").strip().rpartition("\n")[2]
    return f"exit status {status}: {last_words}" if last_words else f"exit status {status}"
