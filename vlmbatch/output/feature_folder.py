"""A folder of image features, one file an image, and the manifest that names them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from vlmbatch.config import FEATURE_MANIFEST
from vlmbatch.durable.durable_file import FILES, DurableFile, FileSystem, publish, reported
from vlmbatch.durable.lock import OutputLock
from vlmbatch.errors import UsageError
from vlmbatch.manifest.json_text import dump_json

_FEATURES = "features"
_UNFINISHED = f"{_FEATURES}/unfinished"
_LOCK = "features.lock"


class FeatureFiles:
    """Files of features by name in the folder ``path``, each there in whole or not at all.

    ``write`` may be called from many threads and processes, each name by one.

    Raises:
        OutputError: by every method, when the file system refuses.
    """

    def __init__(self, path: Path, files: FileSystem = FILES) -> None:
        self.path = path
        self._files = files

    def relative_path(self, name: str) -> str:
        """Where the features of this name are, as the manifest says it."""
        return f"{_FEATURES}/{name[:2]}/{name}.safetensors"

    def stored(self) -> Iterator[Path]:
        """All files of features."""
        return (self.path / _FEATURES).rglob("*.safetensors")

    def has(self, name: str) -> bool:
        return (self.path / self.relative_path(name)).exists()

    def write(self, name: str, data: bytes) -> None:
        """Store the bytes of a ``.safetensors`` file; durable on return."""
        path = self.path / self.relative_path(name)
        with reported(path):
            if not path.parent.is_dir():
                self._files.make_folder(path.parent)
                self._files.fsync_folder(path.parent.parent)
            # Of this process alone: one that was killed may leave engines that are yet to end.
            temporary = self.path / _UNFINISHED / f"{name}.{os.getpid()}.tmp"
            with DurableFile(temporary, self._files) as file:
                file.write(data)
                file.sync()
            publish(temporary, path, "output", self._files)


class FeatureFolder(FeatureFiles):
    """The folder as the command holds it; made when it is not there. One at a time does.

    Raises:
        UsageError: the folder holds something else.
        OutputLockedError: another process writes it.
        OutputError: the file system refuses.
    """

    def __init__(self, path: Path, files: FileSystem = FILES, name: str | None = None) -> None:
        """``name``: what the user calls it."""
        super().__init__(path, files)
        with reported(path):
            files.make_folder(path)
            if any(path.iterdir()) and not (path / _LOCK).exists():
                raise UsageError(
                    f"{path} holds other files than `vlmbatch features` writes: name a new folder"
                )
        self._lock = OutputLock(path / _LOCK, name or path)
        with reported(path):
            for folder in (_FEATURES, _UNFINISHED):
                files.make_folder(path / folder)
            self._remove_unfinished()
            files.fsync_folder(path)
            files.fsync_folder(path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # the next command does
            self._remove_unfinished()
        self._lock.release()

    def _remove_unfinished(self) -> None:
        """What commands and engines have left that were killed."""
        for stale in (self.path / _UNFINISHED).glob("*.tmp"):
            stale.unlink(missing_ok=True)


class FeatureManifest:
    """The folder's manifest, written row by row; it takes its name when it is whole."""

    def __init__(self, folder: FeatureFolder, files: FileSystem = FILES) -> None:
        self._path = folder.path / FEATURE_MANIFEST
        self._temporary = folder.path / f"{FEATURE_MANIFEST}.tmp"
        self._files = files
        with reported(self._path):
            self._file = DurableFile(self._temporary, files)
        self._buffer = io.BufferedWriter(self._file, 2**20)

    def write(self, values: dict[str, Any]) -> None:
        with reported(self._path):
            self._buffer.write(dump_json(values).encode() + b"\n")

    def commit(self) -> None:
        """Put the manifest in its place, durably, and in that of an earlier one."""
        with reported(self._path):
            self._buffer.flush()
            self._file.sync()
            publish(self._temporary, self._path, "output", self._files)

    def close(self) -> None:
        self._file.close()
