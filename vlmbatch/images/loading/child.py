"""A process of ours that reads other people's files: started, heard to its end, killed."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import subprocess
import sys

from vlmbatch.images.loading.protocol import MalformedReplyError, receive_reply, send
from vlmbatch.processes import (
    anonymous_file,
    beyond_standard,
    cause_of_death,
    error_file,
    search_path,
)

_EXIT_SECONDS = 5.0  # a killed process that takes longer is stuck in the kernel

_SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# For the kernel to clear 50 MB anew takes a third of the time of decoding a large photo into them.
_KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(64 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
}


class WorkerLostError(Exception):
    """The process ended, or never came up, with no image in hand: none is to blame."""


class ChildProcess:
    """Belongs to one thread; ``kill`` alone may be called from another.

    ``module`` is run with the descriptors of a socket and of ``shared_bytes`` of memory, and gets
    ``settings`` first. It may take ``start_s`` seconds to answer that.

    Raises:
        WorkerLostError: the process cannot be started.
    """

    def __init__(self, module: str, settings: bytes, shared_bytes: int, start_s: float) -> None:
        self._settings = settings
        self._start_s = start_s
        self.alive = True
        with contextlib.ExitStack() as descriptors:
            try:
                self._launch(module, shared_bytes, descriptors)
            except OSError as error:
                raise WorkerLostError(f"{sys.executable}: {error.strerror}") from error
            self._descriptors = descriptors.pop_all()

    def _launch(self, module: str, shared_bytes: int, mine: contextlib.ExitStack) -> None:
        """Start the process; ``mine`` closes what this side keeps open."""
        self._connection, theirs = socket.socketpair()
        mine.enter_context(self._connection)
        with theirs, contextlib.ExitStack() as passed:
            self._stderr = error_file("vlmbatch-worker-stderr")
            mine.callback(os.close, self._stderr)
            pixels = anonymous_file("vlmbatch-pixels")
            passed.callback(os.close, pixels)
            os.ftruncate(pixels, shared_bytes)
            self._pixels = mine.enter_context(mmap.mmap(pixels, 0))
            command = [sys.executable, "-P", "-W", "ignore", "-m", module]
            descriptors = [beyond_standard(each, passed) for each in (theirs.fileno(), pixels)]
            self._process = subprocess.Popen(
                [*command, *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=descriptors,
                env=_environment(),
                process_group=0,  # out of reach of the terminal's Ctrl-C and Ctrl-Z
            )

    def wait_ready(self) -> None:
        """Wait until the process has imported what it needs.

        Raises:
            WorkerLostError: it ended, or took too long.
        """
        self._connection.settimeout(self._start_s)
        try:
            send(self._connection, {}, self._settings)
            receive_reply(self._connection)
        except TimeoutError as error:
            self.close()
            raise WorkerLostError(f"not ready within {self._start_s:g} s") from error
        except (EOFError, ConnectionError) as error:
            raise WorkerLostError(self._autopsy(error)) from error

    def kill(self) -> None:
        """End the process; what waits for it, if anything does, raises."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process, and free what was held for it."""
        self.alive = False
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)
        self._descriptors.close()

    def _autopsy(self, error: EOFError | ConnectionError) -> str:
        """What the process died of, or is killed for; closes."""
        if isinstance(error, MalformedReplyError):
            self.close()
            return str(error)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)
        cause = cause_of_death(self._process.poll(), self._stderr)
        self.close()
        return cause


def _environment() -> dict[str, str]:
    """This process's, with the modules that it can import; made for decoding."""
    variables = {**_SINGLE_THREADED, **_KEEP_FREED_MEMORY, "PYTHONPATH": search_path()}
    return {**os.environ, **variables}
