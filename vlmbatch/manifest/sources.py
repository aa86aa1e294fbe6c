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
from vlmbatch.manifest.columns import Columns
from vlmbatch.manifest.compressed import BUFFER_BYTES, open_stream
from vlmbatch.manifest.csv_file import CsvFile
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
from vlmbatch.manifest.parquet import ParquetFile
from vlmbatch.manifest.partitions import PartitionedFile, is_partition, partition_of
from vlmbatch.manifest.scan import ManifestFile
from vlmbatch.manifest.spool import spool as spooled
from vlmbatch.manifest.tar_file import TarFile

_PARQUET_SUFFIX = ".parquet"
_COMPRESSIONS = ("", ".gz", ".zst")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_KINDS = ".parquet, .tar, .jsonl, .ndjson, .csv or .tsv (the last four also .gz or .zst)"


def _with_compression(*suffixes: str) -> tuple[str, ...]:
    return tuple(suffix + compression for suffix in suffixes for compression in _COMPRESSIONS)


# Kinds of manifests, of which a folder holds one: names to the ends of their files' names.
_SUFFIXES = {
    "Parquet": (_PARQUET_SUFFIX,),
    "JSONL": _with_compression(".jsonl", ".ndjson"),
    "WebDataset": (".tar",),
    "CSV": _with_compression(*_DELIMITERS),
}


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
                _refuse_folder_options(config)
                return [_manifest_file(path, config, asked) for path in named], named[0].parent
            if is_pattern(config.source):
                base, patterns = split_pattern(config.source)
                return _images(config, base, ImageTree(base, patterns))
            raise ManifestError(f"{source}: no such manifest")
        if not source.is_file():
            raise ManifestError(f"{source}: not a file; to read JSONL from a pipe, use -")
        if is_image_name(source.name) or is_document_name(source.name):
            name = glob.escape(source.name)
            return _images(config, source.parent, ImageTree(source.parent, [name]))
        if not _is_manifest(source):
            raise ManifestError(f"{source}: of no known kind: the name must end in {_KINDS}")
        _refuse_folder_options(config)
        return [_manifest_file(source, config, asked)], source.parent
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise ManifestError(f"{config.source!r}: cannot be read: {error}") from error


def _partitioned(
    paths: list[Path], folder: Path, config: ManifestConfig, asked: tuple[str, ...]
) -> list[ManifestFile]:
    _refuse_folder_options(config)
    if config.prompt is not None and next(ImageTree(folder).paths(), None) is not None:
        logger.info(
            "%s holds a manifest, %s, and is read as one; for all images in it name them, as in %s",
            *(folder, paths[0].relative_to(folder), folder / "**" / "*"),
        )
    return [
        PartitionedFile(_manifest_file(path, config, asked), partition)
        if (partition := partition_of(path, folder))
        else _manifest_file(path, config, asked)
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
                f"{source}: the folder holds {what}, and no file that ends in {_KINDS}; of these, "
                "only those in the folder itself and in folders called key=value are read"
            )
        raise ManifestError(f"{source}: the pattern matches {what}")
    if config.prompt is None and not config.sidecars:
        raise ManifestError(
            f"{source} is images without prompts: ask the same of all with --prompt, such as "
            '--prompt "Describe the picture."; or read prompts beside them, such as with --sidecar '
            ".txt --prompt-column txt"
        )
    return [ImageFolder(source, base, tree, config)], base


def _refuse_folder_options(config: ManifestConfig) -> None:
    if config.sidecars:
        raise ManifestError(
            f"{config.source}: --sidecar {config.sidecars[0]} is for folders of images, and this "
            "is a manifest: what it has beside an image is in its columns"
        )
    if config.pages is not None:
        raise ManifestError(
            f"{config.source}: --pages {config.pages} is for folders of PDFs, and this is a "
            "manifest: it names each page itself, as in a/b.pdf#3"
        )


def _manifest_file(path: Path, config: ManifestConfig, asked: tuple[str, ...]) -> ManifestFile:
    kind = _kind(path)
    if kind == "Parquet":
        return ParquetFile(path)
    if kind == "WebDataset":
        return TarFile(path, config.max_line_bytes)
    name, open_file, limit = str(path), partial(open_stream, path), config.max_line_bytes
    if kind == "JSONL":
        return JsonlFile(name, open_file, limit)
    suffix = next(each for each in path.suffixes[::-1] if each.lower() in _DELIMITERS).lower()
    empty_prompt = "" if config.prompt is None else None
    columns = Columns.from_config(config, asked)
    return CsvFile(name, open_file, _DELIMITERS[suffix], columns, limit, empty_prompt)


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
    chunks = iter(partial(stdin.read, BUFFER_BYTES), b"")
    open_stdin = spooled(chunks, "standard input") if spool else lambda: stdin
    return JsonlFile("<stdin>", open_stdin, max_line_bytes)


def _folder_files(folder: Path) -> list[Path]:
    paths = sorted(_files_below(folder, folder))
    for path in paths:
        if _kind(path) != _kind(first := paths[0]):
            raise ManifestError(
                f"{folder}: the folder holds both {_kind(first)} and {_kind(path)} "
                f"({first.relative_to(folder)} and {path.relative_to(folder)}): name one file, or "
                "keep one kind in the folder"
            )
    return paths


def _check_named(paths: list[Path]) -> None:
    """The files of a brace pattern: all there, of one kind."""
    for path in paths:
        if not path.is_file():
            raise ManifestError(f"{path}: no such manifest, and the pattern names it")
        if not _is_manifest(path):
            raise ManifestError(f"{path}: of no known kind: the name must end in {_KINDS}")
        if _kind(path) != _kind(paths[0]):
            raise ManifestError(
                f"{path} is {_kind(path)}, and {paths[0]} {_kind(paths[0])}: a pattern must name "
                "files of one kind"
            )


def _files_below(folder: Path, manifest: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name[0] in "._":
            continue
        if is_partition(path) and path.is_dir():
            partition_of(path / "file", manifest)  # a link to a folder above would never end
            yield from _files_below(path, manifest)
        elif _is_manifest(path) and not path.is_dir():
            yield path


def _kind(path: Path) -> str | None:
    """What a file is by its name, of ``_SUFFIXES``; None of other files."""
    name = path.name.lower()
    return next((kind for kind, ends in _SUFFIXES.items() if name.endswith(ends)), None)


def _is_manifest(path: Path) -> bool:
    return _kind(path) is not None
