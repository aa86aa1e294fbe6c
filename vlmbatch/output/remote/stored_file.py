"""A file at a URL, as a page or a list of errors: written on this machine, then put whole."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import Self

from vlmbatch.durable.durable_file import reported
from vlmbatch.durable.staging_paths import staging_place
from vlmbatch.errors import UsageError
from vlmbatch.output.remote.target import put_once
from vlmbatch.remote.errors import RemoteError
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.puts import put_patiently
from vlmbatch.remote.upload_log import UploadLog
from vlmbatch.remote.versions import ChangedError, read_object, version_of
from vlmbatch.stats import RunStats

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """``what``: its name for messages. ``base``: the version of what it replaces, if anything."""

    what: str
    place: RemotePath
    base: str | None

    def __str__(self) -> str:
        return self.place.url

    @classmethod
    def at(cls, what: str, place: RemotePath) -> Self:
        """The file at ``place``, which replaces what is there now, and nothing that comes later.

        Raises:
            RemoteError: the store cannot be asked.
        """
        return cls(what, place, version_of(place))

    @contextmanager
    def written(self, stats: RunStats) -> Iterator[Path]:
        """A file of this machine to be written within, and put when that is done.

        Where it cannot be put it stays, and the message says where.

        Raises:
            UsageError: something else has been put there meanwhile.
            RemoteError: the store refuses, or cannot be reached.
        """
        folder = Path(mkdtemp(prefix="vlmbatch-"))
        suffix = PurePosixPath(self.place.path).suffix
        name = staging_place(self.place.url, folder)[1]
        path = folder / f"{name}{suffix if _SUFFIX.fullmatch(suffix) else ''}"
        is_kept = False
        try:
            yield path
            try:
                self._put(path, UploadLog(folder / "uploads.json"), stats)
            except ChangedError as error:
                is_kept = True
                raise UsageError(
                    f"{self.what} was put by something else since this command began, and is left "
                    f"as it is: this command's is kept in {path}"
                ) from error
            except RemoteError as error:
                is_kept = True
                raise type(error)(f"{error}. What could not be put is kept in {path}") from error
        finally:
            if not is_kept:
                shutil.rmtree(folder)

    def _put(self, path: Path, uploads: UploadLog, stats: RunStats) -> None:
        def put() -> None:
            with reported(path), stats.transferring(path.stat().st_size) as sent:
                put_once(path, self.place, self.base, uploads, sent, is_own)

        def is_own() -> bool:
            return read_object(self.place) == path.read_bytes()

        stats.stage = f"putting {self}"
        put_patiently(put)
