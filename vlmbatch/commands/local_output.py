"""Outputs that are paths, refused before any work begins where they could not be written."""

from __future__ import annotations

import os
from pathlib import Path

from vlmbatch.commands.array_task import chosen_part
from vlmbatch.commands.contradictions import check_cluster_input
from vlmbatch.commands.path_errors import path_errors
from vlmbatch.commands.places import is_stream
from vlmbatch.commands.urls import is_url, object_scheme
from vlmbatch.config import (
    Destination,
    FileDestination,
    FolderDestination,
    OutputOptions,
    Part,
    PartDestination,
    StdoutDestination,
)
from vlmbatch.durable.run_paths import WORK_SUFFIX, real_output, temporary_path, work_folder_path
from vlmbatch.errors import UsageError

DEFAULT_SHARD_ROWS = 100_000
DEFAULT_PART_ROWS = 10_000  # minutes of one engine's work: what a machine that dies holds up
_FILE_SUFFIXES = (".parquet", ".jsonl")  # the latter for OpenAI's batch requests


def names_folder(output: str) -> bool:
    """Whether an output is written as a folder of shards, by its name alone."""
    return output != "-" and (output.endswith("/") or Path(output).suffix not in _FILE_SUFFIXES)


def local_destination(options: OutputOptions, manifest: str, *, overwrite: bool) -> Destination:
    """Where the answers go, where that is no URL.

    Raises:
        UsageError: none given for a manifest file, of another kind than we write, or in the way.
    """
    output, shard_rows = options.output, options.shard_rows
    part = None if options.shard is None else chosen_part(options.shard, os.environ)
    if output is None and manifest == "-":
        output = "-"
    if output is None:
        name = Path(manifest).name.partition(".")[0].strip("*?") or "answers"
        raise UsageError(
            f"no output given: add -o {name}.answers.parquet for a Parquet file, "
            "or -o - for JSONL on standard output"
        )
    check_cluster_input(options, manifest)
    if options.ray is not None:
        return _parts_destination(options, output)
    if part is not None:
        return _part_destination(output, part, shard_rows)
    if output == "-":
        if shard_rows is not None:
            raise UsageError("--shard-rows needs a folder: standard output is one stream")
        return StdoutDestination()
    _check_output(output, overwrite=overwrite, sharded=shard_rows is not None)
    if shard_rows is not None or names_folder(output):
        return FolderDestination(Path(output), shard_rows or DEFAULT_SHARD_ROWS)
    return FileDestination(Path(output))


def _parts_destination(options: OutputOptions, output: str) -> FolderDestination:
    """Where the machines of a cluster write their parts."""
    if (what := _no_part_folder(output)) is not None:
        raise UsageError(
            f"--ray needs a folder that all nodes see, for the parts that they write: {what}. Give "
            "one, such as -o answers/, and join the parts with `vlmbatch merge`"
        )
    _check_output(output, overwrite=True, sharded=True)
    return FolderDestination(Path(output), options.shard_rows or DEFAULT_PART_ROWS)


def _part_destination(output: str, part: Part, shard_rows: int | None) -> PartDestination:
    if shard_rows is not None:
        raise UsageError(
            f"--shard {part} and --shard-rows {shard_rows} contradict each other: a part is one "
            "file. Choose one"
        )
    if (what := _no_part_folder(output)) is not None:
        raise UsageError(
            f"--shard {part} needs a folder, where each task writes its part: {what}. Give all "
            "tasks the same folder, such as -o answers/, and join the parts with `vlmbatch merge`"
        )
    _check_output(output, overwrite=True, sharded=True)
    return PartDestination(Path(output), part)


def _no_part_folder(output: str) -> str | None:
    """Why parts cannot be written there one by one, if so."""
    if output == "-":
        return "standard output is one stream"
    with path_errors(f"output {output}"):
        return None if names_folder(output) or Path(output).is_dir() else f"{output} names a file"


def _check_output(output: str, *, overwrite: bool, sharded: bool) -> None:
    with path_errors(f"output {output}"):
        _check_path(
            output, Path(output), overwrite=overwrite, folder=sharded or names_folder(output)
        )


def _check_path(output: str, path: Path, *, overwrite: bool, folder: bool) -> None:
    if is_stream(output):
        raise UsageError(
            f"output {output} is a device, a pipe or in a folder of the system's own, where "
            "nothing can be kept: name a file elsewhere, or use -o - for JSONL on standard output"
        )
    if path.is_dir() and not folder:
        raise UsageError(
            f"output {output} is a folder: name a .parquet file in it, such as "
            f"-o {path / 'answers.parquet'}, or add --shard-rows for a folder of files"
        )
    if path.name in ("", ".."):
        raise UsageError(f"output {output}: give the folder's name, as in -o {path / 'answers/'}")
    if folder and path.is_file():
        if not names_folder(output):
            raise UsageError(
                f"output {output} is a file, and with --shard-rows it would be a folder of files: "
                "leave --shard-rows out, or choose another name"
            )
        raise UsageError(
            f"output {output} is a file, not a folder: choose a name that ends in .parquet, "
            "another folder, or - for JSONL on standard output"
        )
    is_clear = output.endswith("/") or path.is_dir()  # a folder's name may have a dot
    if folder and not is_clear and path.suffix not in ("", ".parquet"):
        raise UsageError(
            f"output {output} is of no kind that can be written: choose a name that ends in "
            ".parquet, a folder, or - for JSONL on standard output"
        )
    target = real_output(path)
    if not target.parent.is_dir():
        raise UsageError(f"output {output}: there is no folder {target.parent}; create it first")
    if not folder and target.suffix != path.suffix:
        raise UsageError(
            f"output {output} is a symbolic link to {target}, whose name does not end in "
            f"{path.suffix}: name the file itself, or another"
        )
    if WORK_SUFFIX in (path.suffix, target.suffix):
        raise UsageError(
            f"output {output}: names that end in {WORK_SUFFIX} are those of work folders: choose "
            "another name"
        )
    _check_length(target, is_file=not folder)
    has_run = work_folder_path(path).is_dir()
    if path.is_file() and not overwrite and not has_run:
        raise UsageError(
            f"output {output} exists, and no run on it is known: add --overwrite to replace it, or "
            "choose another name"
        )


def _check_length(path: Path, *, is_file: bool) -> None:
    """Refuse a name that leaves no room for those of the files beside it."""
    names = [f"{path.name}{WORK_SUFFIX}"]
    if is_file:
        names.append(temporary_path(path).name)
    if path.suffix == ".jsonl":
        from vlmbatch.output.openai_lines import errors_path

        names.append(temporary_path(errors_path(path)).name)
    longest = max(len(os.fsencode(name)) for name in names)
    limit = os.pathconf(path.parent, "PC_NAME_MAX")
    if longest > limit:
        length = len(os.fsencode(path.name))
        raise UsageError(
            f"output {path}: the name has {length} bytes, and {limit - longest + length} are "
            f"possible: files beside it have longer names, and the file system allows {limit} bytes"
        )


def checked_merged_file(output: str | None, folder: Path, *, overwrite: bool) -> Path:
    """Where parts are joined, refused before they are read.

    Raises:
        UsageError: none given, or no Parquet file can be there, or something is in the way.
    """
    if output is None:
        name = folder.resolve().name or "answers"
        raise UsageError(f"no output given: add -o {name}.parquet")
    if output == "-" or names_folder(output) or Path(output).suffix != ".parquet":
        raise UsageError(
            f"output {output}: parts are joined into one Parquet file: choose a name that ends in "
            ".parquet"
        )
    _check_output(output, overwrite=overwrite, sharded=False)
    return Path(output)


def checked_feature_folder(output: str | None) -> str:
    """Where features go.

    Raises:
        UsageError: none given, or no folder can be there.
    """
    if output is None or output == "-":
        raise UsageError("no folder given for the features: add -o features/")
    if is_url(output):
        object_scheme("output", output, "s3://BUCKET/features/")
        return output
    with path_errors(f"output {output}"):
        path = Path(output)
        if path.exists() and not path.is_dir():
            raise UsageError(f"output {output} is a file: name a folder for the features")
        if not path.parent.is_dir():
            raise UsageError(f"output {output}: there is no folder {path.parent}; create it first")
    return output
