"""Where a manifest's rows come from: a file, the files of a folder, standard input, images."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from vlmbatch.config import ManifestConfig
from vlmbatch.errors import ManifestError
from vlmbatch.log import logger
from vlmbatch.manifest.braces import expand_braces, is_brace_pattern
from vlmbatch.manifest.compressed import BUFFER_BYTES
from vlmbatch.manifest.image_folder import ImageFolder
from vlmbatch.manifest.image_tree import (
    IMAGE_SUFFIXES,
    ImageTree,
    is_document_name,
    is_image_name,
    is_pattern,
    split_pattern,
)
from vlmbatch.manifest.jsonl import JsonlFile
from vlmbatch.manifest.kinds import (
    KINDS,
    check_folder,
    check_one_kind,
    is_manifest,
    manifest_file,
    refuse_folder_options,
    unknown_kind,
)
from vlmbatch.manifest.partitions import PartitionedFile, is_partition, partition_of
from vlmbatch.manifest.scan import ManifestFile
from vlmbatch.manifest.spool import spool as spooled
from vlmbatch.manifest.stored_file import LocalFile


def find_files(
    config: ManifestConfig, asked: tuple[str, ...] = ()
) -> tuple[Sequence[ManifestFile], Path]:
    """The manifest's files, and the folder where relative image paths start.

    ``asked``: the output's own columns beyond those of every output.

    The files are the source itself, or those of the folder, sorted by name. Of folders in it, those
    called ``key=value`` are read too, and so on below. Other files and folders, and names that
    start with a dot or an underscore, are left out. A folder without such files is one of images,
    and so is a pattern.

    Raises:
        ManifestError: nothing there, or nothing of one known kind.
    """
    source = Path(config.source)
    try:
        if source.is_dir():
            if paths := _folder_files(source):
                return _partitioned(paths, source, config, asked), source
            return _images(config, source, ImageTree(source))
        if not source.exists():
            if is_brace_pattern(config.source):
                named = [Path(each) for each in expand_braces(config.source)]
                _check_named(named)
                refuse_folder_options(config)
                files = [manifest_file(LocalFile(path), config, asked) for path in named]
                return files, named[0].parent
            if is_pattern(config.source):
                base, patterns = split_pattern(config.source)
                return _images(config, base, ImageTree(base, patterns))
            raise ManifestError(f"{source}: no such manifest")
        if not source.is_file():
            raise ManifestError(f"{source}: not a file; to read JSONL from a pipe, use -")
        if is_image_name(source.name) or is_document_name(source.name):
            name = glob.escape(source.name)
            return _images(config, source.parent, ImageTree(source.parent, [name]))
        if not is_manifest(source):
            raise unknown_kind(config.source)
        refuse_folder_options(config)
        return [manifest_file(LocalFile(source), config, asked)], source.parent
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise ManifestError(f"{config.source!r}: cannot be read: {error}") from error


def _partitioned(
    paths: list[Path], folder: Path, config: ManifestConfig, asked: tuple[str, ...]
) -> list[ManifestFile]:
    refuse_folder_options(config)
    if config.prompt is not None and next(ImageTree(folder).paths(), None) is not None:
        logger.info(
            "%s holds a manifest, %s, and is read as one; for all images in it name them, as in %s",
            *(folder, paths[0].relative_to(folder), folder / "**" / "*"),
        )
    return [
        PartitionedFile(manifest_file(LocalFile(path), config, asked), partition)
        if (partition := partition_of(path, folder))
        else manifest_file(LocalFile(path), config, asked)
        for path in paths
    ]


def _images(
    config: ManifestConfig, base: Path, tree: ImageTree
) -> tuple[Sequence[ManifestFile], Path]:
    source = config.source
    if next(tree.paths(), None) is None:
        what = f"no image ({', '.join(IMAGE_SUFFIXES)}) and no .pdf"
        if Path(source).is_dir():
            raise ManifestError(
                f"{source}: the folder holds {what}, and no file that ends in {KINDS}; of these, "
                "only those in the folder itself and in folders called key=value are read"
            )
        message = f"{source}: the pattern matches {what}"
        matches = glob.iglob(source, recursive=True)  # noqa: PTH207  absolute ones too
        if found := next(filter(is_manifest, map(Path, matches)), None):
            message += (
                f"; of manifests such as {found} give the folder, or name all in braces, as in "
                "rows-{00..07}.parquet"
            )
        raise ManifestError(message)
    return [ImageFolder(source, base, tree, config)], base


def is_part_of_folder(path: Path, folder: Path) -> bool:
    """Whether a file of that path, which need not exist, is one that ``folder`` is read from."""
    if not path.is_relative_to(folder) or not is_manifest(path) or path.name[0] in "._":
        return False
    return all(map(is_partition, path.relative_to(folder).parents[:-1]))


def stdin_file(stdin: BinaryIO, max_line_bytes: int, *, spool: bool) -> ManifestFile:
    """JSONL on standard input; copied to a temporary file first when it is read more than once.

    Raises:
        OutputError: the copy does not fit the temporary folder.
    """
    chunks = iter(partial(stdin.read, BUFFER_BYTES), b"")
    open_stdin = spooled(chunks, "standard input") if spool else lambda: stdin
    return JsonlFile("<stdin>", open_stdin, max_line_bytes)


def _folder_files(folder: Path) -> list[Path]:
    paths = sorted(_files_below(folder, folder))
    check_folder(str(folder), [path.relative_to(folder) for path in paths])
    return paths


def _check_named(paths: list[Path]) -> None:
    """The files of a brace pattern: all there, of one kind."""
    for path in paths:
        if not path.is_file():
            raise ManifestError(f"{path}: no such manifest, and the pattern names it")
    check_one_kind(list(map(str, paths)))


def _files_below(folder: Path, manifest: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name[0] in "._":
            continue
        if is_partition(path) and path.is_dir():
            partition_of(path / "file", manifest)  # a link to a folder above would never end
            yield from _files_below(path, manifest)
        elif is_manifest(path) and not path.is_dir():
            yield path
