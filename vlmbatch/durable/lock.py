"""One run at a time on an output: a lock that dies with its process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from vlmbatch.durable.durable_file import open_own, output_error, reported
from vlmbatch.errors import OutputError, OutputLockedError

# flock belongs to the open file, which a forked child shares: a worker that outlives its parent
# would keep the output locked.
_held: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)

# ``lock_holder`` holds the lock itself for a moment: a run that meets it must not give up.
_ATTEMPTS = 3
_SECONDS_BETWEEN = 0.05


@dataclass(frozen=True, slots=True)
class LockHolder:
    """The process that holds a lock, in its own words."""

    pid: int
    host: str
    started: str  # ISO 8601, UTC
    command: str

    @classmethod
    def this_process(cls) -> LockHolder:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        return cls(os.getpid(), socket.gethostname(), started, command)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}: {self.command:.200}"


class OutputLock:
    """An exclusive flock on ``path``, held until ``release`` or the end of the process.

    The file stays when the lock goes: to remove it could take it from under the next run.

    Raises:
        OutputLockedError: another run holds it; the message names the process.
        OutputError: the file cannot be written, or its file system has no locks.
    """

    def __init__(self, path: Path, output: Path | str) -> None:
        with reported(path):
            self._descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            if not self._acquire(path):
                raise locked_error(output, _read_holder(self._descriptor))
            with reported(path):
                os.ftruncate(self._descriptor, 0)
                text = json.dumps(asdict(LockHolder.this_process()))
                os.pwrite(self._descriptor, text.encode(), 0)
        except BaseException:
            os.close(self._descriptor)
            raise
        _held.add(self._descriptor)

    def release(self) -> None:
        """Let the next run in. Does nothing when called again."""
        if self._descriptor in _held:
            _held.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _acquire(self, path: Path) -> bool:
        for _ in range(_ATTEMPTS - 1):
            if _try_lock(self._descriptor, path, fcntl.LOCK_EX):
                return True
            time.sleep(_SECONDS_BETWEEN)
        return _try_lock(self._descriptor, path, fcntl.LOCK_EX)


def lock_holder(path: Path) -> LockHolder | None:
    """Who holds the lock at ``path`` now; None when nobody does.

    Raises:
        OutputError: the file cannot be read, or its file system has no locks.
    """
    try:
        descriptor = open_own(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise output_error(path, error) from error
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error
    try:
        if _try_lock(descriptor, path, fcntl.LOCK_SH):
            return None
        return _read_holder(descriptor) or LockHolder(0, "unknown", "unknown", "unknown")
    finally:
        os.close(descriptor)


def locked_error(output: Path | str, holder: LockHolder | None) -> OutputLockedError:
    """What the user reads when another run writes ``output``."""
    return OutputLockedError(
        f"{output} is being written by another run ({holder or 'another process'}). Wait until it "
        "ends, or stop it, then run again; or choose another output"
    )


def _try_lock(descriptor: int, path: Path, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise OutputError(
                f"{path} cannot be locked: {error.strerror}. Its file system has no file locks "
                "(some network mounts have none): write to another disk and copy the output "
                "afterwards, or mount it with locks"
            ) from error
        raise OutputError(f"{path} cannot be locked: {error.strerror}") from error
    return True


def _read_holder(descriptor: int) -> LockHolder | None:
    """None while the holder has not yet written who it is."""
    try:
        values = json.loads(os.pread(descriptor, 65536, 0))
        return LockHolder(
            int(values["pid"]), str(values["host"]), str(values["started"]), str(values["command"])
        )
    except (ValueError, KeyError, TypeError, OSError):
        return None
