"""What the pool and a worker process say to each other, over a socket and two shared files.

A frame is the lengths of a JSON header and of a body, then both. The first frame to the worker
holds its settings, pickled; all that comes back from it, which has read other people's files, is
JSON. Pixels come back in memory that both have mapped: a worker has one image at a time, what
decodes on a device one batch.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

from vlmbatch.config import ImageResolution
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.types import ImageRef, Page, PixelImage

# Of a file: device, inode, size in bytes, time of its last change in nanoseconds.
FileIdentity = tuple[int, int, int, int]

_LENGTHS = struct.Struct("<IQ")
_MAX_HEADER_BYTES = 2**20


class MalformedReplyError(EOFError):
    """What came is no reply: the other side is not any more what was started."""

    def __str__(self) -> str:
        return "it sent what is no reply"


def request_of(ref: ImageRef) -> dict[str, Any]:
    """What asks for an image; its own bytes go in the body."""
    return {
        "path": ref.path,
        "num_bytes": None if ref.data is None else len(ref.data),
        "resolution": ref.resolution and astuple(ref.resolution),
        "row_images": ref.row_images,
        "page": ref.page and astuple(ref.page),
    }


def ref_of(request: dict[str, Any], data: bytes) -> ImageRef:
    """The image that ``request_of`` asks for; ``data``: its bytes, where it brings them."""
    own = request["resolution"]
    return ImageRef(
        request["path"],
        None if request["num_bytes"] is None else data,
        resolution=own and ImageResolution(*own),
        row_images=request["row_images"],
        page=request["page"] and Page(*request["page"]),
    )


def reply_of(image: PixelImage, identity: FileIdentity | None) -> dict[str, Any]:
    """What tells of an image whose pixels lie in shared memory."""
    return {
        "content_hash": image.content_hash.hex(),
        "shape": image.pixels.shape,
        "grid": astuple(image.grid),
        "identity": identity,
    }


def send(connection: socket.socket, header: dict[str, Any], body: bytes = b"") -> None:
    """Write one frame. Raises ConnectionError, or TimeoutError where the socket has one."""
    text = json.dumps(header).encode()
    connection.sendall(_LENGTHS.pack(len(text), len(body)) + text)
    if body:
        connection.sendall(body)


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytes]:
    """Read one request, header and body, of the process that started this one.

    Raises:
        EOFError: the connection is closed.
    """
    header_length, body_length = _LENGTHS.unpack(_read(connection, _LENGTHS.size))
    header: dict[str, Any] = json.loads(_read(connection, header_length))
    return header, bytes(_read(connection, body_length))


def receive_reply(connection: socket.socket) -> dict[str, Any]:
    """Read one reply, a header alone, of whom other people's files may have taken over.

    Raises:
        EOFError: the connection is closed; a MalformedReplyError where it is no such frame.
        ConnectionError: it is closed, and what was sent was not read.
        TimeoutError: it did not come as a whole within the socket's timeout.
    """
    timeout = connection.gettimeout()
    deadline = None if timeout is None else time.monotonic() + timeout
    header_length, body_length = _LENGTHS.unpack(_read(connection, _LENGTHS.size, deadline))
    if header_length > _MAX_HEADER_BYTES or body_length:
        raise MalformedReplyError
    text = _read(connection, header_length, deadline)
    connection.settimeout(timeout)
    with well_formed():
        header = json.loads(text)
    if not isinstance(header, dict):
        raise MalformedReplyError
    return header


@contextlib.contextmanager
def well_formed() -> Iterator[None]:
    """Within, what a reply lacks, or has of another kind, is a MalformedReplyError."""
    try:
        yield
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise MalformedReplyError from error


def check_no_error(reply: dict[str, Any]) -> None:
    """Raises the RowError that a reply tells of, or a MalformedReplyError."""
    if "code" in reply:
        with well_formed():
            error = RowError(ErrorCode(reply["code"]), str(reply["message"]))
        raise error


def _read(connection: socket.socket, length: int, deadline: float | None = None) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        if deadline is not None:  # each byte may not take as long as the whole
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
        count = connection.recv_into(view)
        if count == 0:
            raise EOFError
        view = view[count:]
    return data


def file_identity(path: str) -> FileIdentity | None:
    """What changes when the file at ``path`` does; None when there is none."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):  # ValueError: a path that no file can have
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
