"""Opening image bytes safely: regular files only, inside the root, within the byte limit."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

from vlmbatch.config import ImageLimits
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.types import ImageRef

_SHOWN_CHARACTERS = 200
_FILE_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def image_label(ref: ImageRef) -> str:
    """What to call the image in messages."""
    name = ref.path if ref.url is None else ref.url
    label = _shown(name) if name is not None else "embedded image"
    return label if ref.page is None else f"{label}#{ref.page.number}"


def _shown(path: str | Path) -> str:
    """A path for messages: its middle is left out when it is long."""
    text = str(path)
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    kept = _SHOWN_CHARACTERS - 1
    return f"{text[: kept // 2]}…{text[-(kept - kept // 2) :]}"


def open_image_bytes(ref: ImageRef, limits: ImageLimits) -> BinaryIO:
    """Open the encoded image for reading; never blocks on pipes and devices.

    Raises:
        RowError: IMAGE_MISSING, IMAGE_FORBIDDEN, IMAGE_UNREADABLE or IMAGE_TOO_LARGE.
    """
    if ref.data is not None:
        _check_size(len(ref.data), ref, limits)
        return io.BytesIO(ref.data)
    assert ref.path is not None, "an image is a path or bytes; one behind a URL is fetched before"
    path = ref.path
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        _check_inside(None, path, limits)
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise RowError(ErrorCode.IMAGE_MISSING, f"{_shown(path)}: no such file") from error
        raise RowError(
            ErrorCode.IMAGE_UNREADABLE, f"{_shown(path)}: cannot be opened: {error.strerror}"
        ) from error
    try:
        _check_inside(descriptor, path, limits)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = _FILE_KINDS.get(stat.S_IFMT(status.st_mode), "not a file")
            raise RowError(ErrorCode.IMAGE_UNREADABLE, f"{_shown(path)}: {kind}, not an image file")
        _check_size(status.st_size, ref, limits)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_image_bytes(ref: ImageRef, limits: ImageLimits) -> bytes:
    """The encoded image; errors as by ``open_image_bytes``."""
    with open_image_bytes(ref, limits) as file:
        try:
            return file.read(limits.max_bytes)
        except OSError as error:
            raise RowError(
                ErrorCode.IMAGE_UNREADABLE, f"{image_label(ref)}: cannot be read: {error.strerror}"
            ) from error


def _check_size(size: int, ref: ImageRef, limits: ImageLimits) -> None:
    if size == 0:
        raise RowError(ErrorCode.IMAGE_UNREADABLE, f"{image_label(ref)}: empty (0 bytes)")
    if size > limits.max_bytes:
        raise RowError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"{image_label(ref)}: {size} bytes, over the limit of {limits.max_bytes} bytes",
        )


def _check_inside(descriptor: int | None, path: str, limits: ImageLimits) -> None:
    """``descriptor`` is of the file that ``path`` opened, if it could be opened."""
    if limits.root is None:
        return
    root = _real_path(limits.root)
    real_path = _real_path(path) if descriptor is None else _opened_path(descriptor, path)
    if not real_path.is_relative_to(root):
        raise RowError(
            ErrorCode.IMAGE_FORBIDDEN,
            f"{_shown(path)}: leads to {_shown(real_path)}, outside the image root {_shown(root)}",
        )


def _real_path(path: str | Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises on a loop of links


def _opened_path(descriptor: int, path: str) -> Path:
    """The real path of the file that is open, whatever has become of the path's links since."""
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:  # no /proc on this system
        real_path = _real_path(path)
    try:
        unchanged = os.path.samestat(real_path.stat(), os.fstat(descriptor))
    except OSError:  # gone, or a loop of links by now
        unchanged = False
    if not unchanged:
        raise RowError(
            ErrorCode.IMAGE_FORBIDDEN, f"{_shown(path)}: changed while it was being opened"
        )
    return real_path
