"""Options checked and put together before any work begins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vlmbatch.commands.array_task import chosen_part
from vlmbatch.commands.places import is_stream
from vlmbatch.commands.urls import check_object, is_url, object_scheme, refuse_url
from vlmbatch.config import (
    Destination,
    EngineConfig,
    FileDestination,
    FolderDestination,
    ManifestConfig,
    OutputOptions,
    Part,
    PartDestination,
    RunPolicy,
    SamplingParams,
    StdoutDestination,
)
from vlmbatch.durable.run_paths import WORK_SUFFIX, real_output, temporary_path, work_folder_path
from vlmbatch.errors import UsageError

if TYPE_CHECKING:
    from vlmbatch.output.remote.stored_file import StoredFile
    from vlmbatch.remote.filesystem import RemotePath

DEFAULT_SHARD_ROWS = 100_000
DEFAULT_PART_ROWS = 10_000  # minutes of one engine's work: what a machine that dies holds up
_REPORT_EXAMPLES = {
    "--errors": "s3://BUCKET/errors.jsonl",
    "--summary-json": "s3://BUCKET/run.json",
}
_FILE_SUFFIXES = (".parquet", ".jsonl")  # the latter for OpenAI's batch requests


def is_folder(output: str) -> bool:
    """Whether an output is written as a folder of shards, by its name alone."""
    return output != "-" and (output.endswith("/") or Path(output).suffix not in _FILE_SUFFIXES)


def checked_destination(options: OutputOptions, manifest: str, *, overwrite: bool) -> Destination:
    """Where the answers go, refused now rather than after hours of work.

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
    with _looking_at(f"output {output}"):
        _check_place(output, overwrite=overwrite, sharded=shard_rows is not None)
    if shard_rows is not None or is_folder(output):
        return FolderDestination(Path(output), shard_rows or DEFAULT_SHARD_ROWS)
    return FileDestination(Path(output))


def check_cluster_input(options: OutputOptions, manifest: str) -> None:
    """Refuse with --ray what is another way to divide a manifest, or is of this machine alone.

    Raises:
        UsageError: names the options.
    """
    if options.ray is None:
        return
    if options.shard is not None:
        raise UsageError(
            f"--ray and --shard {options.shard} contradict each other: Ray gives the parts to "
            "machines, or your scheduler does. Choose one"
        )
    if manifest == "-":
        raise UsageError(
            "--ray needs a manifest that all nodes can read: standard input is this machine's"
        )


def _parts_destination(options: OutputOptions, output: str) -> FolderDestination:
    """Where the machines of a cluster write their parts."""
    if output == "-" or (not Path(output).is_dir() and not is_folder(output)):
        what = "standard output is one stream" if output == "-" else f"{output} names a file"
        raise UsageError(
            f"--ray needs a folder that all nodes see, for the parts that they write: {what}. Give "
            "one, such as -o answers/, and join the parts with `vlmbatch merge`"
        )
    with _looking_at(f"output {output}"):
        _check_place(output, overwrite=True, sharded=True)
        return FolderDestination(Path(output), options.shard_rows or DEFAULT_PART_ROWS)


def check_cluster_engines(ray: str | None, engine: EngineConfig) -> None:
    """Refuse what says how many engines one machine has, where Ray does.

    Raises:
        UsageError: names the options.
    """
    given = "--gpus" if engine.gpus is not None else "--replicas"
    value = engine.gpus if engine.gpus is not None else engine.replicas
    if ray is not None and value is not None:
        raise UsageError(
            f"--ray and {given} {value} contradict each other: every engine gets its GPUs of "
            "the cluster, and Ray says which. Choose one"
        )


def _part_destination(output: str, part: Part, shard_rows: int | None) -> PartDestination:
    folder = Path(output)
    if shard_rows is not None:
        raise UsageError(
            f"--shard {part} and --shard-rows {shard_rows} contradict each other: a part is one "
            "file. Choose one"
        )
    if output == "-" or (not folder.is_dir() and not is_folder(output)):
        what = "standard output is one stream" if output == "-" else f"{output} names a file"
        raise UsageError(
            f"--shard {part} needs a folder, where each task writes its part: {what}. Give all "
            "tasks the same folder, such as -o answers/, and join the parts with `vlmbatch merge`"
        )
    with _looking_at(f"output {output}"):
        _check_place(output, overwrite=True, sharded=True)
        return PartDestination(folder, part)


def _check_place(output: str, *, overwrite: bool, sharded: bool) -> None:
    path = Path(output)
    if is_stream(output):
        raise UsageError(
            f"output {output} is a device, a pipe or in a folder of the system's own, where "
            "nothing can be kept: name a file elsewhere, or use -o - for JSONL on standard output"
        )
    folder = sharded or is_folder(output)
    if path.is_dir() and not folder:
        raise UsageError(
            f"output {output} is a folder: name a .parquet file in it, such as "
            f"-o {path / 'answers.parquet'}, or add --shard-rows for a folder of files"
        )
    if path.name in ("", ".."):
        raise UsageError(f"output {output}: give the folder's name, as in -o {path / 'answers/'}")
    if folder and path.is_file():
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


def check_merged_file(output: str | None, folder: Path, *, overwrite: bool) -> Path:
    """Where parts are joined, refused before they are read.

    Raises:
        UsageError: none given, or no Parquet file can be there, or something is in the way.
    """
    if output is None:
        name = folder.resolve().name or "answers"
        raise UsageError(f"no output given: add -o {name}.parquet")
    if output == "-" or is_folder(output) or Path(output).suffix != ".parquet":
        raise UsageError(
            f"output {output}: parts are joined into one Parquet file: choose a name that ends in "
            ".parquet"
        )
    with _looking_at(f"output {output}"):
        _check_place(output, overwrite=overwrite, sharded=False)
    return Path(output)


def checked_page(page: str | None, output: str, *, overwrite: bool) -> Path | StoredFile:
    """Where a page goes, refused before an output is read.

    Raises:
        UsageError: none given, or no page can be there, or something is in the way.
        RemoteError: the store would not take it, or cannot be reached.
    """
    if page is None:
        raise UsageError(f"no page given: add -o {Path(output).name.partition('.')[0]}.html")
    path = Path(page)
    if path.suffix not in (".html", ".htm") or (not is_url(page) and is_stream(page)):
        raise UsageError(f"page {page}: choose the name of a file that ends in .html")
    if is_url(page):
        place = check_object("page", page, "s3://BUCKET/page.html")
        return _stored_page(place, overwrite=overwrite)
    check_report_file("--page", page)
    with _looking_at(f"page {page}"):
        if os.path.lexists(path) and not overwrite:
            raise UsageError(f"page {page} exists: add --overwrite to replace it")
    return path


def _stored_page(place: RemotePath, *, overwrite: bool) -> StoredFile:
    from vlmbatch.output.remote.stored_file import StoredFile

    page = StoredFile.at(f"page {place.url}", place)
    if page.base is not None and not overwrite:
        raise UsageError(f"page {page} exists: add --overwrite to replace it")
    return page


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
    with _looking_at(f"output {output}"):
        path = Path(output)
        if path.exists() and not path.is_dir():
            raise UsageError(f"output {output} is a file: name a folder for the features")
        if not path.parent.is_dir():
            raise UsageError(f"output {output}: there is no folder {path.parent}; create it first")
    return output


def check_resume_options(destination: Destination, policy: RunPolicy) -> None:
    """Refuse options that contradict each other, or have nothing to resume.

    Raises:
        UsageError: names the options.
    """
    chosen = [
        name
        for name, given in (
            ("--overwrite", policy.overwrite),
            ("--retry-failed", policy.retry_failed),
            ("--incremental", policy.incremental),
        )
        if given
    ]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} contradict each other: choose one")
    if isinstance(destination, StdoutDestination) and chosen and not policy.overwrite:
        raise UsageError(f"{chosen[0]} needs an output file: standard output keeps nothing")


def check_answers(sampling: SamplingParams, text_folder: str | None) -> None:
    """Refuse several answers to a row where they would be the same, or some of them be left out.

    Raises:
        UsageError: names the options.
    """
    given = f"--n {sampling.n}"
    if sampling.n == 1:
        return
    if sampling.temperature == 0:
        raise UsageError(
            f"{given} gives the same answer {sampling.n} times at --temperature 0: raise it, as in "
            "--temperature 0.7"
        )
    if sampling.logprobs is not None:
        raise UsageError(
            f"{given} and --logprobs {sampling.logprobs} contradict each other: the column has the "
            "tokens of one answer. Choose one"
        )
    if text_folder is not None:
        raise UsageError(
            f"{given} and --write-text {text_folder} contradict each other: a row has one file. "
            "Choose one"
        )


def check_sample(destination: Destination, manifest: ManifestConfig, ray: str | None) -> None:
    """Refuse a sample in parts.

    Raises:
        UsageError: names both options.
    """
    if manifest.sample is None:
        return
    parts = f"--shard {destination.part}" if isinstance(destination, PartDestination) else None
    if parts or ray is not None:
        raise UsageError(
            f"--sample {manifest.sample} and {parts or '--ray'} contradict each other: a sample is "
            "answered whole by one task. Choose one"
        )


def check_report_file(option: str, path: str | None) -> None:
    """Refuse now what could not be written at the end.

    Raises:
        UsageError: the path of ``option`` is a folder, or is in none.
    """
    refuse_url(option, path)
    if path is None or path == "-":
        return
    with _looking_at(f"{option} {path}"):
        if Path(path).is_dir():
            raise UsageError(f"{option} {path} is a folder: name a file in it")
        if not Path(path).parent.is_dir():
            raise UsageError(
                f"{option} {path}: there is no folder {Path(path).parent}; create it first"
            )


def check_report(option: str, path: str | None) -> None:
    """Refuse now what could not be written at the end, in a store or on this machine.

    Raises:
        UsageError: nothing can be there.
        RemoteError: the store would not take it, or cannot be reached.
    """
    if path is not None and is_url(path):
        check_object(option, path, _REPORT_EXAMPLES[option])
    else:
        check_report_file(option, path)


def check_stdout_use(option: str, path: str | None, *, data_on_stdout: bool) -> None:
    """Refuse two kinds of data on one standard output."""
    if path == "-" and data_on_stdout:
        raise UsageError(f"{option} - would mix with the data on standard output: name a file")


@contextmanager
def _looking_at(what: str) -> Iterator[None]:
    """Turn a path that may not be looked at, or cannot be one, into a usage error."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{what} cannot be looked at: {error.strerror}") from error
    except ValueError as error:  # a NUL character
        raise UsageError(f"{what!r} is no path: {error}") from error
