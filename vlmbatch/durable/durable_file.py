"""Files that outlive a crash: the one place that makes the system calls they rest on."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbatch.durable.crash_points import crash_point
from vlmbatch.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def open_own(path: Path, flags: int, *, follow: bool = False) -> int:
    """Open a file of our own, whose name can be foreseen by whoever shares its folder.

    A symbolic link is not followed unless ``follow``, for files that are only read; a pipe or
    device in its place is not waited for.

    Raises:
        OSError: it cannot be opened; ``ENXIO`` where it is no regular file.
    """
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENXIO, "Not a regular file", str(path))
    return descriptor


class FileSystem:
    """The system calls, one method each. Tests put faults and crashes in their place.

    Raises:
        OSError: by every method.
    """

    def open(self, path: Path, flags: int) -> int:
        return open_own(path, flags)

    def write(self, descriptor: int, data: ReadableBuffer) -> int:
        """Write from the start of ``data``; returns how many bytes were taken."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def replace(self, source: Path, target: Path) -> None:
        source.replace(target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def make_folder(self, path: Path) -> None:
        path.mkdir(exist_ok=True)

    def fsync_folder(self, path: Path) -> None:
        """Make the folder's names durable: files created, renamed and removed in it."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
                raise
        finally:
            os.close(descriptor)


FILES = FileSystem()


class DurableFile(io.RawIOBase):
    """A file written from its start; what was written is durable once ``sync`` returns.

    ``flags``: O_TRUNC replaces a file that exists, O_EXCL refuses it, 0 writes over it.

    Raises:
        OSError: by every method.
    """

    def __init__(self, path: Path, files: FileSystem = FILES, *, flags: int = os.O_TRUNC) -> None:
        super().__init__()
        self.path = path
        self._files = files
        self._size = 0
        self._descriptor = -1
        self._descriptor = files.open(path, os.O_WRONLY | os.O_CREAT | flags)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of ``data``, unlike a raw file's ``write``."""
        left = memoryview(data).cast("B")
        count = len(left)
        while left:
            written = self._files.write(self._descriptor, left)
            if written == 0:
                raise OSError(errno.EIO, "the file system takes no more bytes")
            self._size += written
            left = left[written:]
        return count

    def sync(self) -> None:
        """Make the content durable; its name needs ``fsync_folder`` as well.

        Raises:
            OSError: also when the file was deleted, so that the content is kept nowhere.
        """
        self._files.fsync(self._descriptor)
        if os.fstat(self._descriptor).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "the file was deleted while in use")

    def close(self) -> None:
        """Let go of the file; to keep its content is ``sync``'s part."""
        if not self.closed:
            super().close()
            with contextlib.suppress(OSError):  # of what was synced, nothing can be lost any more
                os.close(self._descriptor)
            self._descriptor = -1  # the number may soon be another file's

    def tell(self) -> int:
        return self._size

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True


def publish(temporary: Path, path: Path, name: str, files: FileSystem = FILES) -> None:
    """Give a synced file its final name, durably. ``name`` is that of the crash points.

    Raises:
        OSError: the old file of that name, if any, may or may not be replaced: never in part.
    """
    crash_point(f"{name}.synced")
    files.replace(temporary, path)
    crash_point(f"{name}.renamed")
    files.fsync_folder(path.parent)
    crash_point(f"{name}.published")


@contextlib.contextmanager
def removed_on_failure(temporary: Path) -> Iterator[None]:
    """Leave no file of ours behind where it could not be filled or put in its place."""
    try:
        yield
    except (OSError, KeyboardInterrupt):
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into an ``OutputError`` about ``path``."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def output_error(path: Path, error: Exception) -> OutputError:
    """What the user reads when ``path`` cannot be written: the cause and what to do."""
    reason = getattr(error, "strerror", None) or str(error)
    number: Any = getattr(error, "errno", None)
    if number in (errno.ELOOP, errno.ENXIO):
        found = getattr(error, "filename", None) or path
        what = "a symbolic link" if number == errno.ELOOP else "a pipe or device"
        return OutputError(
            f"{found} is {what} in the place of a file of our own, and is not used: remove it, "
            "then run again"
        )
    return OutputError(f"{path} cannot be written: {reason}. {_advice(number)}, then run again")


def _advice(number: int | None) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "Free space on its disk (or raise the quota)"
    if number == errno.EFBIG:
        return "Raise the limit on the size of files (ulimit -f)"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "Make its folder writable"
    if number in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
        return "Check that its folder exists and is mounted"
    if number == errno.EIO:
        return "Check the disk or the network mount, which reports a failure"
    return "Check that its folder exists, is writable and has space left"
