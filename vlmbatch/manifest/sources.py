"""Where a manifest's bytes come from: a file, the files of a folder, standard input."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from vlmbatch.errors import ManifestError, OutputError
from vlmbatch.manifest.compressed import BUFFER_BYTES, open_stream
from vlmbatch.manifest.jsonl import JsonlFile
from vlmbatch.manifest.parquet import ParquetFile
from vlmbatch.manifest.partitions import PartitionedFile, is_partition, partition_of
from vlmbatch.manifest.scan import ManifestFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PARQUET_SUFFIX = ".parquet"
_JSONL_SUFFIXES = tuple(
    suffix + compression for suffix in (".jsonl", ".ndjson") for compression in ("", ".gz", ".zst")
)
_KINDS = ".parquet, .jsonl or .ndjson (the last two also .gz or .zst)"


def find_files(source: Path, max_line_bytes: int) -> Sequence[ManifestFile]:
    """The manifest's files: ``source`` itself, or those of the folder, sorted by name.

    Of folders in it, those called ``key=value`` are read too, and so on below. Other files and
    folders, and names that start with a dot or an underscore, are left out.

    Raises:
        ManifestError: nothing there, or nothing of one known kind.
    """
    try:
        if source.is_dir():
            paths = _folder_files(source)
        elif not source.exists():
            raise ManifestError(f"{source}: no such manifest")
        elif not source.is_file():
            raise ManifestError(f"{source}: not a file; to read JSONL from a pipe, use -")
        elif not _is_manifest(source):
            raise ManifestError(f"{source}: of no known kind: the name must end in {_KINDS}")
        else:
            return [_manifest_file(source, max_line_bytes)]
        return [
            PartitionedFile(_manifest_file(path, max_line_bytes), partition)
            if (partition := partition_of(path, source))
            else _manifest_file(path, max_line_bytes)
            for path in paths
        ]
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise ManifestError(f"{str(source)!r}: cannot be read: {error}") from error


def _manifest_file(path: Path, max_line_bytes: int) -> ManifestFile:
    if _is_parquet(path):
        return ParquetFile(path)
    return JsonlFile(str(path), partial(open_stream, path), max_line_bytes)


def is_part_of_folder(path: Path, folder: Path) -> bool:
    """Whether a file of that path, which need not exist, is one that ``folder`` is read from."""
    if not path.is_relative_to(folder) or not _is_manifest(path) or path.name[0] in "._":
        return False
    return all(map(is_partition, path.relative_to(folder).parents[:-1]))


def stdin_file(stdin: BinaryIO, max_line_bytes: int, *, spool: bool) -> ManifestFile:
    """JSONL on standard input; copied to a temporary file first when it is read more than once.

    Raises:
        OutputError: the copy does not fit the temporary folder.
    """
    open_stdin = _spooled(stdin) if spool else lambda: stdin
    return JsonlFile("<stdin>", open_stdin, max_line_bytes)


def _folder_files(folder: Path) -> list[Path]:
    paths = sorted(_files_below(folder, folder))
    if not paths:
        raise ManifestError(
            f"{folder}: the folder holds no file that ends in {_KINDS}; of folders in it, only "
            "those called key=value are read"
        )
    first = paths[0]
    for path in paths:
        if _is_parquet(path) != _is_parquet(first):
            raise ManifestError(
                f"{folder}: the folder holds both Parquet and JSONL "
                f"({first.relative_to(folder)} and {path.relative_to(folder)}): name one file, or "
                "keep one kind in the folder"
            )
    return paths


def _files_below(folder: Path, manifest: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name[0] in "._":
            continue
        if is_partition(path) and path.is_dir():
            partition_of(path / "file", manifest)  # a link to a folder above would never end
            yield from _files_below(path, manifest)
        elif _is_manifest(path) and not path.is_dir():
            yield path


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == _PARQUET_SUFFIX


def _is_manifest(path: Path) -> bool:
    return path.name.lower().endswith((_PARQUET_SUFFIX, *_JSONL_SUFFIXES))


def _spooled(source: BinaryIO) -> Callable[[], BinaryIO]:
    try:
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the manifest
        shutil.copyfileobj(source, spool, BUFFER_BYTES)
        spool.flush()
    except OSError as error:
        raise OutputError(
            f"standard input could not be copied to {tempfile.gettempdir()} ({error.strerror}): "
            "free some space there, or set TMPDIR to a folder on another disk"
        ) from error

    return lambda: cast(BinaryIO, io.BufferedReader(_SpoolReader(spool), BUFFER_BYTES))


class _SpoolReader(io.RawIOBase):
    """Reads a file from its start; others may read it meanwhile."""

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool = spool
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = os.preadv(self._spool.fileno(), [buffer], self._offset)
        self._offset += count
        return count
