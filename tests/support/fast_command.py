"""``vlmbatch ARGUMENTS`` as a process of its own, in a fraction of its starting time."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from command_line import environment

_SERVER = Path(__file__).with_name("fast_server.py")
_SECONDS = 60.0  # no command here takes longer
_FOLDER = "TESTS_FAST_SERVERS"  # the variable that says where servers listen


def share_servers() -> None:
    """Let this process and those that it starts have their servers in common.

    A server imports once for all of them, and ends with this process.
    """
    if _FOLDER in os.environ:
        return
    until_exit = contextlib.ExitStack()
    atexit.register(until_exit.close)
    folder = until_exit.enter_context(tempfile.TemporaryDirectory(prefix="vlmbatch-tests-"))
    os.mkfifo(alive := Path(folder, "alive"))
    until_exit.callback(os.close, os.open(alive, os.O_RDWR))
    os.environ[_FOLDER] = folder


def _connection(real: bool) -> socket.socket:
    """To a fork of the server, which is started where nobody has yet."""
    share_servers()
    folder = Path(os.environ[_FOLDER])
    address = folder / ("real" if real else "fake")
    with address.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not address.exists():
            with subprocess.Popen(
                [sys.executable, str(_SERVER), str(address), *(["--real"] if real else [])],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                # It may have no thread when it forks.
                env=environment(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1"),
            ) as server:
                assert server.stdout is not None and server.stdout.readline() == "listening\n"
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(address))
    return connection


class Command:
    """A command under way. What it has printed and done can be read at any time."""

    def __init__(self, server: FastCommands, pid: int, files: Path) -> None:
        self.pid = pid
        self._server = server
        self._files = files
        self._descriptor = os.pidfd_open(pid)
        self._status: int | None = None
        self._taken = 0  # bytes of its log
        self._told: dict[str, list[int]] = {}

    def send_signal(self, number: int) -> None:
        signal.pidfd_send_signal(self._descriptor, number)

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether it ends within so many seconds."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return self._status is not None or bool(poll.poll(seconds * 1000))

    def wait(self, seconds: float = _SECONDS) -> int:
        """Its exit status, as ``subprocess`` gives it."""
        if self._status is None:
            if not self.ended(seconds):
                self.send_signal(signal.SIGKILL)
                raise AssertionError(f"still there after {seconds} s:\n{self.stderr}")
            self._status = self._server.ask(wait=self.pid)
            os.close(self._descriptor)
        return self._status

    def ended_before(self, condition: Callable[[], bool]) -> bool:
        """Wait for something that the command does; whether it has ended without."""
        deadline = time.monotonic() + _SECONDS
        while not condition():
            if self.ended(0.001):
                return not condition()
            assert time.monotonic() < deadline, self.stderr
        return False

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the command has to do before it ends."""
        assert not self.ended_before(condition), self.stderr

    @property
    def stderr(self) -> str:
        return self._read(".stderr")

    @property
    def stdout(self) -> str:
        return self._read(".stdout")

    @property
    def computed(self) -> list[int]:
        """The rows that its engine has ended."""
        return self.told("computed")

    @property
    def acknowledged(self) -> list[int]:
        """The rows that its journal says are safe."""
        return self.told("acknowledged")

    @property
    def memory_taken(self) -> int:
        """Bytes of resident memory, at its peak, over what it started with; it has ended."""
        at_start, peak = self.told("memory")
        return peak - at_start

    def has(self, event: str) -> bool:
        self._take_in()
        return event in self._told

    def told(self, kind: str) -> list[int]:
        self._take_in()
        return list(self._told.get(kind, ()))

    def _take_in(self) -> None:
        """Read on in the log: those who wait for an event look a thousand times a second."""
        path = self._files.with_suffix(".log")
        if not path.exists():
            return
        with path.open("rb") as log:
            log.seek(self._taken)
            new = log.read()
        new = new[: new.rfind(b"\n") + 1]  # without a line that is being written
        self._taken += len(new)
        for line in new.splitlines():
            kind, *numbers = line.decode().split()
            self._told.setdefault(kind, []).extend(map(int, numbers))

    def _read(self, suffix: str) -> str:
        path = self._files.with_suffix(suffix)
        return path.read_text() if path.exists() else ""


class FastCommands:
    """Starts commands; ``folder`` takes what they print. ``real``: with the real engine."""

    def __init__(self, folder: Path, *, real: bool = False) -> None:
        self._folder = folder
        self._real = real
        self._numbers = itertools.count()
        self._connection = _connection(real)
        self._stream = self._connection.makefile("rw")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        self._connection.close()

    def start(
        self,
        *arguments: object,
        folder: Path | None = None,
        crash_at: str = "",
        variables: Mapping[str, str] = MappingProxyType({}),
        stdin: str | Path = os.devnull,
        stdout: str | Path | None = None,
        **around: Any,
    ) -> Command:
        """Start ``vlmbatch ARGUMENTS`` in ``folder``; ``around``: its ``Surroundings``.

        ``stdin`` and ``stdout`` may be named pipes, and the real engine has no surroundings.
        """
        assert not (self._real and around)
        files = self._folder / str(next(self._numbers))
        pid = self.ask(
            arguments=[str(argument) for argument in arguments],
            folder=str(folder or self._folder),
            environment=environment(VLMBATCH_CRASH_AT=crash_at, **variables),
            surroundings=None if self._real else around,
            stdin=str(stdin),
            stdout=str(stdout or files.with_suffix(".stdout")),
            stderr=str(files.with_suffix(".stderr")),
            log=str(files.with_suffix(".log")),
        )
        return Command(self, pid, files)

    def run(self, *arguments: object, **around: Any) -> Command:
        """Start it, and wait for its end."""
        command = self.start(*arguments, **around)
        command.wait()
        return command

    def ask(self, **request: Any) -> int:
        self._stream.write(json.dumps(request) + "\n")
        self._stream.flush()
        reply: int = json.loads(self._stream.readline())
        return reply
