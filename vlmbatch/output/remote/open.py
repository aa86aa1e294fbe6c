"""Which target a URL is."""

from __future__ import annotations

from vlmbatch.config import FolderDestination, PartDestination, RemoteDestination
from vlmbatch.output.remote.file_target import FileTarget
from vlmbatch.output.remote.folder_target import FolderTarget
from vlmbatch.output.remote.hub_target import DEFAULT_FOLDER, HubTarget
from vlmbatch.output.remote.target import Target
from vlmbatch.remote.filesystem import RemotePath, open_filesystem
from vlmbatch.remote.puts import allow_slow_puts
from vlmbatch.remote.upload_log import UploadLog


def open_target(remote: RemoteDestination) -> Target:
    """The place that ``remote`` names; what is needed to put there is kept in its folder.

    Raises:
        ConfigError: its scheme is not known, or what reads it is not installed.
    """
    uploads = UploadLog(remote.folder / "put.uploads.json")
    path = open_filesystem(remote.url)
    allow_slow_puts(path)
    if path.scheme == "hf":
        _, owner, name, *folder = remote.url.partition("://")[2].strip("/").split("/")
        return HubTarget(path, f"{owner}/{name}", "/".join(folder) or DEFAULT_FOLDER)
    if isinstance(remote.local, FolderDestination):
        return FolderTarget(path, uploads, remote.folder / "put.claim.json")
    return FileTarget(path, uploads)


def open_part_folder(remote: RemoteDestination) -> RemotePath:
    """The folder of a store in which the parts of runs lie beside each other.

    Raises:
        ConfigError: as ``open_target``.
    """
    is_part = isinstance(remote.local, PartDestination)
    return open_filesystem(remote.url.rpartition("/")[0] if is_part else remote.url)
