"""Objects of a store, small ones at once, and what tells their versions apart."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlmbatch.remote.errors import RemoteError, RemoteMissingError
from vlmbatch.remote.filesystem import RemotePath

Sent = Callable[[int], None]  # told of so many bytes more

_VERSION_KEYS = ("generation", "ETag", "etag", "blob_id")  # the last: the Hub's
_FETCH_BYTES = 16 * 2**20


class ChangedError(RemoteError):
    """Something else has been put in an object's place meanwhile."""


def changed(path: RemotePath) -> ChangedError:
    return ChangedError(f"{path.url} was put by something else meanwhile")


def version_of(path: RemotePath) -> str | None:
    """What tells an object from any other of its name; None where there is none.

    A store's own tag where it has one, else size and time of change.

    Raises:
        RemoteError: the store cannot be asked.
    """
    try:
        with path.errors():
            path.filesystem.invalidate_cache(path.path)
            info = path.filesystem.info(path.path)
    except RemoteMissingError:
        return None
    return None if info.get("type") == "directory" else _version(info)


def names_in(folder: RemotePath) -> dict[str, int | None]:
    """The objects and folders right in ``folder`` by name, with their sizes in bytes.

    Raises:
        RemoteError: the store cannot be asked.
    """
    try:
        with folder.errors():
            folder.filesystem.invalidate_cache(folder.path)
            entries = folder.filesystem.ls(folder.path, detail=True)
    except RemoteMissingError:
        return {}
    found = {}
    for entry in entries:
        name = str(entry["name"]).rstrip("/").rpartition("/")[2]
        if str(entry["name"]).rstrip("/") != folder.path.rstrip("/"):  # a mark of the folder itself
            found[name] = None if entry["type"] == "directory" else entry["size"]
    return found


def names_below(folder: RemotePath) -> frozenset[str]:
    """The objects in ``folder`` and its folders, by their paths in it.

    Raises:
        RemoteError: the store cannot be asked.
    """
    start = f"{folder.path.strip('/')}/"
    try:
        with folder.errors():
            found = folder.filesystem.find(folder.path)
    except RemoteMissingError:
        return frozenset()
    return frozenset(str(path).strip("/").removeprefix(start) for path in found)


def size_of(path: RemotePath) -> int:
    """The bytes of an object.

    Raises:
        RemoteError: there is none, or the store cannot be asked.
    """
    with path.errors():
        return int(path.filesystem.info(path.path)["size"])


def read_object(path: RemotePath) -> bytes | None:
    """All of a small object; None where there is none.

    Raises:
        RemoteError: the store cannot be asked.
    """
    try:
        with path.errors():
            data: bytes = path.filesystem.cat_file(path.path)
    except RemoteMissingError:
        return None
    return data


def remove_object(path: RemotePath) -> None:
    """Remove an object, if it is there.

    Raises:
        RemoteError: the store refuses.
    """
    with suppress(RemoteMissingError), path.errors():
        path.filesystem.rm_file(path.path)


def read_end(path: RemotePath, num_bytes: int) -> bytes:
    """The last bytes of an object; all of one that is shorter.

    Raises:
        RemoteError: there is none, or the store cannot be asked.
    """
    size = size_of(path)
    with path.errors():
        start = max(0, size - num_bytes)
        data: bytes = path.filesystem.cat_file(path.path, start=start, end=size) if size else b""
    return data


def fetch_object(path: RemotePath, target: Path, received: Sent) -> None:
    """Write an object to the file ``target``.

    Raises:
        ChangedError: it is replaced meanwhile.
        RemoteError: there is none, or the store cannot be asked.
        OSError: the file cannot be written.
    """
    version, size = version_of(path), size_of(path)
    with target.open("wb") as file:
        for start in range(0, size, _FETCH_BYTES):
            with path.errors():
                end = min(start + _FETCH_BYTES, size)
                data = path.filesystem.cat_file(path.path, start=start, end=end)
            file.write(data)
            received(len(data))
        file.flush()
        os.fsync(file.fileno())
    if version_of(path) != version:
        raise changed(path)


def _version(info: dict[str, Any]) -> str:
    for key in _VERSION_KEYS:
        if info.get(key):
            return str(info[key])
    times = [str(info.get(key)) for key in ("mtime", "modified", "created", "last_modified")]
    return " ".join([str(info.get("size")), *times])
