"""Folders in Hive's layout: ``year=2026/month=11/part-0.parquet``, keys and values in the names."""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePath

from vlmbatch.errors import ManifestError
from vlmbatch.manifest.scan import ManifestFile, Record, Scan

_FOLDER_NAME = re.compile(r"([^=]+)=(.*)", re.DOTALL)
_NULL = "__HIVE_DEFAULT_PARTITION__"


def is_partition(folder: PurePath) -> bool:
    """Whether a folder is one value of a partition key, by its name."""
    return _FOLDER_NAME.fullmatch(folder.name) is not None and folder.name[0] not in "._"


def partition_of(path: PurePath, folder: PurePath) -> dict[str, str | None]:
    """The keys and values by which ``path`` lies where it does below ``folder``, decoded.

    Raises:
        ManifestError: one key has two values.
    """
    values: dict[str, str | None] = {}
    for name in path.relative_to(folder).parts[:-1]:
        found = _FOLDER_NAME.fullmatch(name)
        assert found is not None, f"{name} is no folder of a partition"
        key, value = map(urllib.parse.unquote, found.groups())
        if key in values:
            raise ManifestError(f'{path}: the folders above it have two values of "{key}"')
        values[key] = None if value == _NULL else value
    return values


class PartitionedFile:
    """A manifest's file whose rows have the values of its partition, where they have none.

    ``file`` is what lies there, without these values.
    """

    def __init__(self, file: ManifestFile, partition: Mapping[str, str | None]) -> None:
        self.file = file
        self.name = file.name
        self._partition = partition

    def scan(self, scan: Scan, limit: int | None) -> str:
        with scan.in_partition(self._partition):
            digest = self.file.scan(scan, limit)
        values = repr(sorted(self._partition.items()))
        return hashlib.sha256(f"{digest} {values}".encode(errors="surrogateescape")).hexdigest()

    def records(self, columns: Collection[str] | None = None, skip: int = 0) -> Iterator[Record]:
        for line, values in self.file.records(columns, skip):
            yield line, {**self._partition, **values} if isinstance(values, dict) else values


def without_partitions(files: Sequence[ManifestFile]) -> list[ManifestFile]:
    """The files as they lie there."""
    return [file.file if isinstance(file, PartitionedFile) else file for file in files]
