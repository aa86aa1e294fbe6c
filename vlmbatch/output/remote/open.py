"""Which target a URL is."""

from __future__ import annotations

from pathlib import Path

from vlmbatch.config import FolderDestination, RemoteDestination
from vlmbatch.output.remote.file_target import FileTarget
from vlmbatch.output.remote.folder_target import FolderTarget
from vlmbatch.output.remote.target import Target
from vlmbatch.remote.filesystem import open_filesystem
from vlmbatch.remote.s3_upload import UploadLog

_CLAIM_FILE = "claim.json"


def open_target(remote: RemoteDestination, folder: Path) -> Target:
    """The place that ``remote`` names; ``folder`` is for what putting there needs.

    Raises:
        ConfigError: its scheme is not known, or what reads it is not installed.
    """
    uploads = UploadLog(folder / "uploads.json")
    path = open_filesystem(remote.url)
    if isinstance(remote.local, FolderDestination):
        return FolderTarget(path, uploads, folder / _CLAIM_FILE)
    return FileTarget(path, uploads)
