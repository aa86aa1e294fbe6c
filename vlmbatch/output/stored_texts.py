"""An answer an object: ``--write-text`` with the URL of a store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from vlmbatch.durable.durable_file import reported
from vlmbatch.errors import UsageError
from vlmbatch.output.remote.many_files import put_files
from vlmbatch.output.text_folder import OWNERS, TextFolder
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.puts import check_writable, replace_object
from vlmbatch.remote.versions import names_below, read_object
from vlmbatch.stats import RunStats

_WAS_PUT = 0  # the time of change of a file here that is in the store as it is


class StoredTextFolder(TextFolder):
    """Files of answers below ``place``: written below ``path`` on this machine, and then put.

    ``owner``: as of ``TextFolder``.

    Raises:
        RemoteError: by every method, when the store refuses or cannot be reached.
    """

    def __init__(self, place: RemotePath, path: Path, owner: str | None) -> None:
        super().__init__(path, owner, place.url)
        self._place = place
        self._there: frozenset[str] = frozenset()
        self._anew = False

    def check(self, ids: Callable[[], Iterable[str]], own: range, *, overwrite: bool) -> None:
        check_writable(self._place.child(OWNERS))
        self._anew = overwrite
        self._there = names_below(self._place)
        super().check(ids, own, overwrite=overwrite)

    def claim(self) -> None:
        with reported(self.path):
            if (self._anew or self.owner is None) and self.path.exists():
                shutil.rmtree(self.path)  # or answers that are the same would not be put again
            self.path.mkdir(parents=True, exist_ok=True)
        if self.owner is not None and not self.is_owner():
            owners = self._place.child(OWNERS)
            line = os.fsencode(self.owner) + b"\n"
            replace_object((read_object(owners) or b"") + line, owners)

    def put(self, stats: RunStats) -> None:
        """Put what has not been put yet, each file whole in the place of what is there."""
        stats.stage = f"putting {self.name}"
        with reported(self.path):
            sizes = {path: path.stat().st_size for path in self._unsent()}
        put_files(sizes, self._put_one, stats)

    def check_place(self, name: str, *, is_ours: bool) -> None:
        if not is_ours and name in self._there:
            raise UsageError(
                f"--write-text {self.name}: {name} is there already, and not written by a run on "
                "the same output: name another folder, or replace what is there with --overwrite"
            )

    def is_owner(self) -> bool:
        if self.owner is None:
            return False
        owners = read_object(self._place.child(OWNERS)) or b""
        return os.fsencode(self.owner) in owners.splitlines()

    def _unsent(self) -> list[Path]:
        return [
            path
            for path in sorted(self.path.rglob("*"))
            if path.is_file()
            and path.name not in (OWNERS, self.temporary)
            and path.stat().st_mtime_ns != _WAS_PUT
        ]

    def _put_one(self, path: Path) -> None:
        name = path.relative_to(self.path).as_posix()
        with reported(path):
            replace_object(path.read_bytes(), self._place.child(name))
            os.utime(path, ns=(_WAS_PUT, _WAS_PUT))
