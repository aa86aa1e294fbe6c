"""What is in a store: an object's identity, its bytes in ranges, the names in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO, cast

from vlmbatch.remote.filesystem import RemotePath

_BLOCK_BYTES = 4 * 2**20  # of a request
_MAX_BLOCKS = 4  # that one reader holds
_BUFFERED = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"})

# What stores call a digest of the content, or what changes with it; the first that there is counts.
_DIGESTS = ("md5Hash", "crc32c", "ETag", "etag", "blob_id", "xet_hash")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


def object_info(place: RemotePath) -> dict[str, Any]:
    """What the store says about an object or folder now: its ``type``, ``size`` and more.

    Raises:
        RemoteError: as ``RemotePath.errors``; RemoteMissingError where there is neither.
    """
    with place.errors():
        place.filesystem.invalidate_cache(place.path)
        found: dict[str, Any] = place.filesystem.info(place.path)
    return found


def identity(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Size, and the digest that the store has of the object or else the time when it was written:
    equal as long as the object is the same."""
    for names in (_DIGESTS, _TIMES):
        for name in names:
            if info.get(name):
                return str(info.get("size")), name, str(info[name])
    return (str(info.get("size")),)


def open_object(place: RemotePath) -> BinaryIO:
    """The object's bytes, a few megabytes a request, the next ones fetched ahead.

    Its methods raise what the file system raises: they belong in ``place.errors``.
    """
    place.filesystem.invalidate_cache(place.path)
    options: dict[str, Any] = {}
    if place.scheme in _BUFFERED:
        options = {
            "block_size": _BLOCK_BYTES,
            "cache_type": "background",
            "cache_options": {"maxblocks": _MAX_BLOCKS},
        }
    return cast(BinaryIO, place.filesystem.open(place.path, "rb", **options))


def read_object(file: BinaryIO, size: int) -> bytes:
    """The next ``size`` bytes of what ``open_object`` has opened, or those that are left.

    More than a block is one request: the cache would fetch blocks that it has dropped again.
    """
    from fsspec.spec import AbstractBufferedFile

    if size <= _BLOCK_BYTES or not isinstance(file, AbstractBufferedFile):
        return file.read(size)
    start = file.tell()
    end = min(start + size, file.size)
    data: bytes = file._fetch_range(start, end) if start < end else b""
    file.seek(start + len(data))
    return data


def opened_info(file: BinaryIO, place: RemotePath) -> dict[str, Any]:
    """As ``object_info``, of when ``file`` was opened there, where that is known."""
    found: dict[str, Any] | None = getattr(file, "details", None)
    return object_info(place) if found is None else found


def list_folder(place: RemotePath) -> list[tuple[str, bool]]:
    """The names in a folder, and whether each is a folder itself.

    Raises:
        RemoteError: as ``RemotePath.errors``.
    """
    with place.errors():
        found = place.filesystem.ls(place.path, detail=True)
    folder = f"{place.path.strip('/')}/"
    names = [(str(each["name"]).strip("/"), each["type"] == "directory") for each in found]
    # An object of the folder's own name stands for it where it is empty.
    return [(name.removeprefix(folder), is_one) for name, is_one in names if name + "/" != folder]
