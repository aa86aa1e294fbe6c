"""Outputs that are URLs: where their answers are kept until they are put."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from vlmbatch.commands.array_task import chosen_part
from vlmbatch.commands.contradictions import check_cluster_input
from vlmbatch.commands.local_output import (
    DEFAULT_PART_ROWS,
    DEFAULT_SHARD_ROWS,
    local_destination,
    names_folder,
)
from vlmbatch.commands.urls import is_url, object_scheme, store_scheme
from vlmbatch.config import (
    Destination,
    FileDestination,
    FolderDestination,
    OutputOptions,
    Part,
    RemoteDestination,
)
from vlmbatch.durable.staging_paths import remote_part, staging_place
from vlmbatch.errors import UnfinishedError, UsageError
from vlmbatch.remote.filesystem import scheme_of

if TYPE_CHECKING:
    from vlmbatch.output.remote.stored_file import StoredFile
    from vlmbatch.stats import RunStats

_HUB_PLACE = re.compile(r"datasets/[^/@]+/[^/@]+(/[^@]*)?")


def chosen_destination(
    options: OutputOptions, manifest: str, *, overwrite: bool
) -> Destination | RemoteDestination:
    """Where the answers go, refused now rather than after hours of work.

    Raises:
        UsageError: none given for a manifest file, of another kind than we write, or in the way.
    """
    if options.output is not None and is_url(options.output):
        _check_manifest(options.output, manifest)
        check_cluster_input(options, manifest)
        return remote_destination(options, options.output)
    return local_destination(options, manifest, overwrite=overwrite)


def remote_destination(options: OutputOptions, url: str) -> RemoteDestination:
    """An output in a store, by its URL alone: nothing is looked at.

    Raises:
        UsageError: it is of a kind that is not put there.
    """
    scheme = store_scheme("output", url, "s3://BUCKET/out.parquet")
    place = url.partition("://")[2]
    if scheme == "hf":
        _check_hub_place(url, place)
    if options.shard is not None:
        return _remote_part(options, url, chosen_part(options.shard, os.environ))
    if options.ray is not None:
        return _remote_parts(options, url)
    suffix = PurePosixPath(place).suffix
    sharded = options.shard_rows is not None or names_folder(place) or scheme == "hf"
    if sharded and scheme != "hf" and not place.endswith("/") and suffix not in ("", ".parquet"):
        raise UsageError(
            f"output {url} is of no kind that can be written: choose a name that ends in .parquet, "
            "or in / for a folder"
        )
    folder, name = staging_place(url, options.work_dir)
    local: FileDestination | FolderDestination = FileDestination(folder / f"{name}{suffix}")
    if sharded:
        local = FolderDestination(folder / name, options.shard_rows or DEFAULT_SHARD_ROWS)
    return RemoteDestination(url, folder, local)


def text_destination(
    options: OutputOptions, destination: Destination | RemoteDestination
) -> tuple[Path | None, str | None]:
    """The folder of ``--write-text`` on this machine, and where what it holds is put, if anywhere.

    Raises:
        UsageError: no files can be put there.
    """
    name = options.write_text
    if name is None:
        return None, None
    if not is_url(name):
        return Path(name), None
    object_scheme("--write-text", name, "s3://BUCKET/texts/")
    output = os.path.realpath(str(destination))
    if isinstance(destination, RemoteDestination):
        output = destination.url
    texts = f"{name.rstrip('/')}/texts of {output}"
    folder, _ = staging_place(texts, options.work_dir)
    return folder / "texts", name


def feature_destination(output: str, work_dir: Path | None) -> tuple[Path, str | None]:
    """The folder of features on this machine, and where what it holds is put, if anywhere."""
    if not is_url(output):
        return Path(output), None
    folder, name = staging_place(output, work_dir)
    return folder / name, output


def merged_destination(folder: str, url: str, work_dir: Path | None) -> RemoteDestination:
    """Where the parts in ``folder`` are joined, which is put at ``url``.

    Raises:
        UsageError: no Parquet file can be there.
    """
    remote = remote_destination(OutputOptions(output=url, work_dir=work_dir), url)
    if not isinstance(remote.local, FileDestination) or remote.local.path.suffix != ".parquet":
        raise UsageError(
            f"output {url}: parts are joined into one Parquet file: choose a name that ends in "
            ".parquet"
        )
    if f"{url.rpartition('/')[0]}/" == f"{folder.rstrip('/')}/":
        raise UsageError(f"output {url} lies in the folder of parts {folder}: choose another place")
    return remote


def _remote_part(options: OutputOptions, url: str, part: Part) -> RemoteDestination:
    if options.shard_rows is not None:
        raise UsageError(
            f"--shard {part} and --shard-rows {options.shard_rows} contradict each other: a part "
            "is one file. Choose one"
        )
    if (what := _no_part_folder(url)) is not None:
        raise UsageError(
            f"--shard {part} needs a folder, where each task puts its part: {what}. Give all tasks "
            "the same folder, such as -o s3://BUCKET/answers/, and join the parts with "
            "`vlmbatch merge`"
        )
    return remote_part(url, part, options.work_dir)


def _remote_parts(options: OutputOptions, url: str) -> RemoteDestination:
    """Where the machines of a cluster put their parts."""
    if (what := _no_part_folder(url)) is not None:
        raise UsageError(
            f"--ray needs a folder, where every node puts its parts: {what}. Give one, such as "
            "-o s3://BUCKET/answers/, and join the parts with `vlmbatch merge`"
        )
    folder, name = staging_place(url, options.work_dir)
    local = FolderDestination(folder / name, options.shard_rows or DEFAULT_PART_ROWS)
    work_dir = None if options.work_dir is None else options.work_dir.absolute()
    return RemoteDestination(url, folder, local, work_dir)


def _no_part_folder(url: str) -> str | None:
    """Why parts cannot be put there one by one, if so."""
    if scheme_of(url) == "hf":
        return "a data set gets one commit"
    return None if names_folder(url) else f"{url} names a file"


@contextmanager
def local_copy(output: str, stats: RunStats) -> Iterator[Path]:
    """An output by its path; one with a URL is fetched, and goes in the end.

    Raises:
        UsageError: there is no output of ours.
        RemoteError: the store cannot be asked.
    """
    if not is_url(output):
        yield Path(output)
        return
    from vlmbatch.jobs.remote_run import fetch_output

    with TemporaryDirectory(prefix="vlmbatch-") as folder:
        remote = remote_destination(OutputOptions(output=output, work_dir=Path(folder)), output)
        fetch_output(remote, stats)
        copy = remote.local.path
        try:
            yield copy
        except (UsageError, UnfinishedError) as error:
            raise type(error)(str(error).replace(str(copy), output.rstrip("/"))) from error


@contextmanager
def local_file(destination: Path | StoredFile, stats: RunStats) -> Iterator[Path]:
    """A file of this machine to write: ``destination`` itself, or what is put there in the end.

    Raises:
        As ``StoredFile.written``.
    """
    if isinstance(destination, Path):
        yield destination
        return
    with destination.written(stats) as file:
        yield file


def _check_manifest(url: str, manifest: str) -> None:
    """Refuse an output that would replace the manifest, or become a part of it."""
    output, source = url.rstrip("/"), manifest.rstrip("/")
    replaced = [output]
    if output.endswith(".jsonl"):
        from vlmbatch.output.openai_lines import errors_path

        folder, _, name = output.rpartition("/")
        replaced.append(f"{folder}/{errors_path(Path(name))}")
    if source in replaced:
        raise UsageError(f"output {url} would replace the manifest {manifest}: choose another name")
    if output.startswith(f"{source}/") or source.startswith(f"{output}/"):
        raise UsageError(
            f"output {url} and the manifest {manifest} lie one in the other, and the next run "
            "would take answers for rows: choose another folder"
        )


def _check_hub_place(url: str, place: str) -> None:
    if not _HUB_PLACE.fullmatch(place):
        raise UsageError(
            f"output {url}: give a data set of the Hugging Face Hub, as in "
            "hf://datasets/OWNER/NAME, or a folder in it"
        )
    if PurePosixPath(place).suffix in (".parquet", ".jsonl") and place.count("/") > 2:
        raise UsageError(
            f"output {url}: a data set gets a folder of shards: give the data set, as in "
            "hf://datasets/OWNER/NAME, or a folder in it"
        )
