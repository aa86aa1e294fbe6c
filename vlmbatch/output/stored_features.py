"""A folder of features at a URL: computed into a folder of this machine, then put.

    bucket/features/_vlmbatch/features.json    by which the folder is known as one of features
    bucket/features/features/ab/abcdef...safetensors
    bucket/features/manifest.jsonl             the last one that is put

What a file of features is called says what is in it: one that is there already is neither computed
nor put, whoever has put it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from vlmbatch.config import FEATURE_MANIFEST
from vlmbatch.durable.crash_points import crash_point
from vlmbatch.durable.durable_file import reported
from vlmbatch.durable.run_paths import INSIDE
from vlmbatch.errors import UsageError
from vlmbatch.output.feature_folder import FeatureFolder
from vlmbatch.output.remote.many_files import put_files
from vlmbatch.output.remote.target import put_once
from vlmbatch.remote.errors import RemoteError
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.puts import allow_slow_puts, put_object, put_patiently, replace_object
from vlmbatch.remote.upload_log import UploadLog
from vlmbatch.remote.versions import ChangedError, names_below, read_object, version_of
from vlmbatch.stats import RunStats

_MARK = f"{INSIDE}/features.json"


class StoredFeatureFolder(FeatureFolder):
    """Features below ``place``: written below ``path`` on this machine, which the command holds.

    Raises:
        UsageError: something else is in the place.
        RemoteError: by every method, when the store refuses or cannot be reached.
    """

    def __init__(self, place: RemotePath, path: Path) -> None:
        allow_slow_puts(place)
        self._place = place
        with reported(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, name=place.url)
        try:
            self._there = names_below(place)
            if self._there and _MARK not in self._there:
                raise UsageError(
                    f"output {place.url} holds other objects than `vlmbatch features` puts: name a "
                    "new folder"
                )
            self._base = version_of(place.child(FEATURE_MANIFEST))
        except BaseException:
            self.__exit__()
            raise
        self._uploads = UploadLog(path.with_name("put.uploads.json"))

    def has(self, name: str) -> bool:
        return self.relative_path(name) in self._there or super().has(name)

    def put(self, stats: RunStats) -> None:
        """Put what is not there yet, and the manifest in the place of what was there at first.

        For some minutes, where the store fails. Features that are put are removed here.

        Raises:
            UsageError: another manifest has been put meanwhile.
        """
        with self._explained():
            if _MARK not in self._there:
                put_patiently(self._put_mark)
            stats.stage = f"putting {self._place.url}"
            put_patiently(lambda: self._put_features(stats))
            stats.stage = f"putting {self._place.child(FEATURE_MANIFEST).url}"
            put_patiently(lambda: self._put_manifest(stats))

    def _put_mark(self) -> None:
        replace_object(json.dumps({"format": 1}).encode(), self._place.child(_MARK))

    def _put_features(self, stats: RunStats) -> None:
        with reported(self.path):
            sizes = {path: path.stat().st_size for path in sorted(self.stored())}
        put_files(sizes, self._put_one, stats)

    def _put_one(self, path: Path) -> None:
        name = path.relative_to(self.path).as_posix()
        with reported(path):
            with suppress(ChangedError):  # by another machine: it is the same
                put_object(path, self._place.child(name), None, self._uploads, lambda _: None)
            crash_point("remote.object_put")
            path.unlink()

    def _put_manifest(self, stats: RunStats) -> None:
        manifest, place = self.path / FEATURE_MANIFEST, self._place.child(FEATURE_MANIFEST)
        is_own = partial(_holds, place, manifest)
        with reported(manifest), stats.transferring(manifest.stat().st_size) as sent:
            put_once(manifest, place, self._base, self._uploads, sent, is_own)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        url = self._place.url
        try:
            yield
        except ChangedError as error:
            raise UsageError(
                f"output {url}: another {FEATURE_MANIFEST} was put since this command began. It is "
                f"left as it is, and this command's is kept in {self.path}: the features are "
                "there, and the same command, run again, replaces it"
            ) from error
        except RemoteError as error:
            raise type(error)(
                f"{error}. What is computed is kept in {self.path}: run the same command again to "
                "put it"
            ) from error


def _holds(place: RemotePath, file: Path) -> bool:
    return read_object(place) == file.read_bytes()
