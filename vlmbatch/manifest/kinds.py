"""Kinds of manifests, which the names of their files tell, and what is refused of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import PurePath, PurePosixPath

from vlmbatch.config import ManifestConfig
from vlmbatch.errors import ManifestError
from vlmbatch.manifest.columns import Columns
from vlmbatch.manifest.compressed import open_stream
from vlmbatch.manifest.csv_file import CsvFile
from vlmbatch.manifest.jsonl import JsonlFile
from vlmbatch.manifest.parquet import ParquetFile
from vlmbatch.manifest.scan import ManifestFile
from vlmbatch.manifest.stored_file import StoredFile
from vlmbatch.manifest.tar_file import TarFile
from vlmbatch.remote.filesystem import scheme_of

_COMPRESSIONS = ("", ".gz", ".zst")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = ".parquet, .tar, .jsonl, .ndjson, .csv or .tsv (the last four also .gz or .zst)"


def _with_compression(*suffixes: str) -> tuple[str, ...]:
    return tuple(suffix + compression for suffix in suffixes for compression in _COMPRESSIONS)


# Of which a folder holds one: names to the ends of their files' names.
_SUFFIXES = {
    "Parquet": (".parquet",),
    "JSONL": _with_compression(".jsonl", ".ndjson"),
    "WebDataset": (".tar",),
    "CSV": _with_compression(*_DELIMITERS),
}


def kind_of(path: PurePath) -> str | None:
    """What a file is by its name, of ``_SUFFIXES``; None of other files."""
    name = path.name.lower()
    return next((kind for kind, ends in _SUFFIXES.items() if name.endswith(ends)), None)


def is_manifest(path: PurePath) -> bool:
    return kind_of(path) is not None


def manifest_file(
    stored: StoredFile, config: ManifestConfig, asked: tuple[str, ...]
) -> ManifestFile:
    """What reads the rows of a file that ``is_manifest``; ``asked`` as of ``find_files``."""
    path = PurePosixPath(stored.name)
    kind = kind_of(path)
    if kind == "Parquet":
        return ParquetFile(stored)
    if kind == "WebDataset":
        return TarFile(stored, config.max_line_bytes)
    open_file, limit = partial(open_stream, stored), config.max_line_bytes
    if kind == "JSONL":
        return JsonlFile(stored.name, open_file, limit)
    suffix = next(each for each in path.suffixes[::-1] if each.lower() in _DELIMITERS).lower()
    empty_prompt = "" if config.prompt is None else None
    columns = Columns.from_config(config, asked)
    return CsvFile(stored.name, open_file, _DELIMITERS[suffix], columns, limit, empty_prompt)


def check_folder(folder: str, paths: Sequence[PurePath]) -> None:
    """That a folder's files, which lie at ``paths`` within it, are of one kind.

    Raises:
        ManifestError: they are not.
    """
    for path in paths:
        if kind_of(path) != kind_of(first := paths[0]):
            raise ManifestError(
                f"{folder}: the folder holds both {kind_of(first)} and {kind_of(path)} "
                f"({first} and {path}): name one file, or keep one kind in the folder"
            )


def check_one_kind(names: Sequence[str]) -> None:
    """That the files which a pattern names are manifests of one kind.

    Raises:
        ManifestError: they are not.
    """
    first = kind_of(PurePosixPath(names[0]))
    for name in names:
        kind = kind_of(PurePosixPath(name))
        if kind is None:
            raise unknown_kind(name)
        if kind != first:
            raise ManifestError(
                f"{name} is {kind}, and {names[0]} {first}: a pattern must name files of one kind"
            )


def unknown_kind(name: str) -> ManifestError:
    """To be raised of a file that is no manifest."""
    remedy = ". jq -c '.[]' makes JSON Lines of an array" if name.lower().endswith(".json") else ""
    return ManifestError(f"{name}: of no known kind: the name must end in {KINDS}{remedy}")


def no_prompts(config: ManifestConfig) -> str:
    """What is said of images that nothing is asked about."""
    message = (
        f"{config.source} is images without prompts: ask the same of all with --prompt, such as "
        '--prompt "Describe the picture."'
    )
    if scheme_of(config.source) is not None:  # where there are no sidecars
        return message
    return (
        f"{message}; or read prompts beside them, such as with --sidecar .txt --prompt-column txt"
    )


def refuse_folder_options(config: ManifestConfig) -> None:
    """Refuse what is for folders of images, where there is a manifest.

    Raises:
        ManifestError: names the option.
    """
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
