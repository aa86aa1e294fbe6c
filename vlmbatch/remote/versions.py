"""Objects of a store: their versions, and putting them whole while nobody else does."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbatch.remote.filesystem import RemoteError, RemoteMissingError, RemotePath
from vlmbatch.remote.s3_upload import PART_BYTES, S3_SCHEMES, S3Upload, UploadLog

if TYPE_CHECKING:
    from fsspec.callbacks import Callback

Sent = Callable[[int], None]  # told of so many bytes more

# A put appears there in one piece, and ``mode="create"`` refuses to replace anything.
_CREATING = ("gs", "gcs", "az", "abfs", "abfss")
_VERSION_KEYS = ("ETag", "etag", "generation", "blob_id")  # the last: the Hub's
_GOOGLE = ("gs", "gcs")
_PUT_SECONDS = 300
_FETCH_BYTES = 16 * 2**20


class ChangedError(RemoteError):
    """Something else has been put in an object's place meanwhile."""


def allow_slow_puts(path: RemotePath) -> None:
    """Let the file system of ``path``, which nothing was asked yet, wait for the answer to a put as
    long as a slow line takes to send a part: no time passes for its libraries while they send."""
    filesystem = path.filesystem
    if path.scheme in S3_SCHEMES:
        filesystem.config_kwargs = {**filesystem.config_kwargs, "read_timeout": _PUT_SECONDS}
    elif path.scheme in _GOOGLE:
        filesystem.requests_timeout = _PUT_SECONDS


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
        raise _changed(path)


def put_object(
    source: Path, path: RemotePath, expected: str | None, uploads: UploadLog, sent: Sent
) -> str:
    """Put the file ``source`` whole, where an object of the version ``expected`` is, or none.

    Returns the version that is there now. ``uploads`` lets a later call go on with what a lost
    connection or a killed process has sent to S3. There the store itself sees to the condition.
    Google's and Azure's do so where there is to be no object. Everywhere else the version is looked
    at just before, and the file grows under another name where it would be seen growing.

    Raises:
        ChangedError: another version is there.
        RemoteError: the store refuses, or cannot be reached.
    """
    if path.scheme in S3_SCHEMES:
        return S3Upload(path, source, uploads, sent).put(expected, lambda: _check(path, expected))
    _check(path, expected)
    callback = _callback(sent)
    if path.scheme in _CREATING:
        options: dict[str, Any] = {"mode": "create" if expected is None else "overwrite"}
        if path.scheme in _GOOGLE:
            options["chunksize"] = PART_BYTES
        try:
            with path.errors():
                path.filesystem.put_file(str(source), path.path, callback=callback, **options)
        except RemoteError as error:
            if isinstance(error.__cause__, FileExistsError):
                raise _changed(path) from error
            raise
    else:
        folder, _, name = path.path.rpartition("/")
        temporary = f"{folder}/.{name}.vlmbatch.tmp"
        with path.errors():
            path.filesystem.makedirs(folder, exist_ok=True)
            path.filesystem.put_file(str(source), temporary, callback=callback)
        _check(path, expected)
        with path.errors():
            path.filesystem.mv(temporary, path.path)
    callback.absolute_update(source.stat().st_size)  # not all of them tell
    version = version_of(path)
    if version is None:
        raise ChangedError(f"{path.url} was removed as soon as it was put")
    return version


def _check(path: RemotePath, expected: str | None) -> None:
    if version_of(path) != expected:
        raise _changed(path)


def _changed(path: RemotePath) -> ChangedError:
    return ChangedError(f"{path.url} was put by something else meanwhile")


def _version(info: dict[str, Any]) -> str:
    for key in _VERSION_KEYS:
        if info.get(key):
            return str(info[key])
    times = [str(info.get(key)) for key in ("mtime", "modified", "created", "last_modified")]
    return " ".join([str(info.get("size")), *times])


def _callback(count: Sent) -> Callback:
    """``count`` as fsspec calls it: with bytes more, or bytes so far."""
    from fsspec.callbacks import Callback

    class Counting(Callback):  # type: ignore[misc]  # fsspec has no types
        def call(self, *args: Any, **kwargs: Any) -> None:
            count(self.value - self.counted)
            self.counted = self.value

        counted = 0

    return Counting()
