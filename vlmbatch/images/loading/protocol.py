"""What the pool and a worker process say to each other, over a socket and two shared files.

A frame is the lengths of a JSON header and of a body, then both. The first frame to the worker
holds its settings, pickled; all that comes back from it, which has read other people's files, is
JSON. Pixels come back in memory that both have mapped: a worker has one image at a time, what
decodes on a device one batch.
"""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import astuple
from pathlib import Path
from typing import Any

from vlmbatch.config import ImageResolution
from vlmbatch.types import ImageRef, Page, PixelImage

# Of a file: device, inode, size in bytes, time of its last change in nanoseconds.
FileIdentity = tuple[int, int, int, int]

_LENGTHS = struct.Struct("<IQ")
_MAX_HEADER_BYTES = 2**20


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
    """Read one frame: header and body.

    Raises:
        EOFError: the connection is closed, or the other side sent a malformed frame.
        ConnectionError: it is closed, and what was sent was not read.
        TimeoutError: nothing came within the socket's timeout.
    """
    header_length, body_length = _LENGTHS.unpack(_read(connection, _LENGTHS.size))
    if header_length > _MAX_HEADER_BYTES:
        raise EOFError
    try:
        header: dict[str, Any] = json.loads(_read(connection, header_length))
    except ValueError as error:
        raise EOFError from error
    return header, bytes(_read(connection, body_length))


def _read(connection: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
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
