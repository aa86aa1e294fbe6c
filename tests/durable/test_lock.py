"""One run at a time on an output, whatever became of the one before."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlmbatch.durable.lock import OutputLock, lock_holder
from vlmbatch.errors import OutputError, OutputLockedError

# Takes the lock, says so, and waits; with "fork", a child waits on, and with "exec", a program.
HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from vlmbatch.durable.lock import OutputLock
lock = OutputLock(Path(sys.argv[1]), Path("out.parquet"))
child = 0
if sys.argv[2] == "fork":
    child = os.fork()
elif sys.argv[2] == "exec":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid
if child or sys.argv[2] == "alone":
    print(child, flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


class Holder:
    """Another process that holds the lock, and perhaps has a child."""

    def __init__(self, path: Path, kind: str = "alone") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), kind], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.child = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def test_second_process_is_told_who_holds_it(path):
    holder = Holder(path)
    try:
        with pytest.raises(OutputLockedError) as caught:
            OutputLock(path, Path("a/out.parquet"))
        message = str(caught.value)
        assert caught.value.exit_status == 75
        assert f"process {holder.process.pid} on {socket.gethostname()}, since 20" in message
        assert "a/out.parquet" in message and f"-c {path} alone" in message
        found = lock_holder(path)
        assert found is not None and found.pid == holder.process.pid
    finally:
        holder.kill()


@pytest.mark.parametrize("kind", ["alone", "fork", "exec"])
def test_a_killed_holder_is_succeeded_at_once(path, kind):
    """Also when a child of its lives on, as a worker process of a pool may."""
    holder = Holder(path, kind)
    holder.kill()
    try:
        OutputLock(path, Path("out.parquet")).release()
        if holder.child:
            os.kill(holder.child, 0)  # it was there all the time
    finally:
        if holder.child:
            os.kill(holder.child, signal.SIGKILL)


def test_release(path):
    lock = OutputLock(path, Path("out.parquet"))
    held = lock_holder(path)
    assert held is not None and held.pid == os.getpid()
    lock.release()
    lock.release()
    assert lock_holder(path) is None
    second = OutputLock(path, Path("out.parquet"))
    lock.release()
    assert lock_holder(path) is not None
    second.release()


def test_the_last_holders_longer_name_leaves_nothing(path):
    path.write_text("x" * 1000)
    lock = OutputLock(path, Path("out.parquet"))
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()


def test_a_look_at_the_lock_does_not_keep_a_run_out(path, monkeypatch):
    """``lock_holder`` has the lock for a moment, in which a run may begin."""
    path.touch()
    looking = os.open(path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda seconds: fcntl.flock(looking, fcntl.LOCK_UN))
    OutputLock(path, Path("out.parquet")).release()
    os.close(looking)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b'{"pid": "x"}', b"\xff"])
def test_a_holder_that_has_not_said_who_it_is(path, content):
    path.write_bytes(content)
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputLockedError, match="another process"):
            OutputLock(path, Path("out.parquet"))
        assert lock_holder(path) is not None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EIO])
def test_a_file_system_without_locks(path, monkeypatch, number):
    used = []

    def refuse(descriptor: int, operation: int) -> None:
        used.append(descriptor)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OutputError, match=os.strerror(number)) as caught:
        OutputLock(path, Path("out.parquet"))
    assert str(path) in str(caught.value)
    assert ("another disk" in str(caught.value)) == (number != errno.EIO)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(used[0])


def test_no_folder(path):
    with pytest.raises(OutputError, match="No such file or directory"):
        OutputLock(path / "lock", Path("out.parquet"))
    assert lock_holder(path) is None
