"""The files and folders of one command beside each other: none may replace or fill another."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from vlmbatch.commands.urls import is_url
from vlmbatch.config import (
    Destination,
    FolderDestination,
    ManifestConfig,
    PartDestination,
    SessionConfig,
    StdoutDestination,
)
from vlmbatch.durable.run_paths import WORK_SUFFIX, temporary_path
from vlmbatch.errors import UsageError


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder that a command reads or writes. ``path`` may be an open descriptor's number,
    or the URL of a place in a store.

    ``written``: the command creates or replaces it. ``is_ours``: a folder in which nothing of
    another kind may lie. ``is_read_whole``: a folder whose files all count, so that no report may
    be put there.
    """

    name: str  # for messages
    path: str | int
    written: bool = False
    is_report: bool = False
    is_ours: bool = False
    is_read_whole: bool = False


def output_places(destination: Destination) -> list[Place]:
    """What a run writes there: answers, errors of batch files, what lets it be resumed."""
    if isinstance(destination, StdoutDestination):
        return []
    if isinstance(destination, PartDestination):  # all that is written lies in the folder
        folder = destination.folder
        return [Place(f"output {folder}", str(folder), written=True, is_ours=True)]
    name, path = f"output {destination}", destination.path
    sharded = isinstance(destination, FolderDestination)
    places = [Place(name, str(path), written=True, is_ours=sharded)]
    # The work folder lies beside the output's own name, or beside that of what it links to.
    for real in {path, Path(os.path.realpath(path))}:
        work = str(real.with_name(f"{real.name}{WORK_SUFFIX}"))
        places.append(Place(f"the work folder of {name}", work, written=True, is_ours=True))
    if sharded:
        return places
    files = [path]
    if path.suffix == ".jsonl":
        from vlmbatch.output.openai_lines import errors_path

        files.append(errors_path(path))
        places.append(Place(f"the file of errors of {name}", str(files[1]), written=True))
    for file in files:
        temporary = str(temporary_path(file))
        places.append(Place(f"the temporary file of {name}", temporary, written=True))
    return places


def feature_places(output: str) -> list[Place]:
    """What ``vlmbatch features`` writes."""
    return [Place(f"output {output}", output, written=True, is_ours=True)]


def text_places(folder: Path | None) -> list[Place]:
    """Where answers are written as files: among what else a user has there."""
    return [] if folder is None else [Place(f"--write-text {folder}", str(folder))]


def report_places(**paths: str | None) -> list[Place]:
    """Files of figures or errors, by the names of their options' parameters."""
    return [
        Place(f"--{name.replace('_', '-')} {path}", path, written=True, is_report=True)
        for name, path in paths.items()
        if path is not None and path != "-"
    ]


def session_places(
    session: SessionConfig, manifest: ManifestConfig, config_file: Path | None
) -> list[Place]:
    """What a command on rows reads."""
    places = input_places(
        config=config_file,
        chat_template=session.prompt.chat_template,
        image_root=session.image_limits.root,
        folders={
            "model": session.model,
            "tokenizer": session.tokenizer,
            "image_processor": session.image_arguments.image_processor,
        },
    )
    if manifest.source != "-":
        places.append(Place("the manifest itself", manifest.source))
    return places


def input_places(*, folders: dict[str, str | None], **files: Path | None) -> list[Place]:
    """Options that name what is read, with values; ``folders`` take a folder or a Hub id."""
    places = []
    for name, path in files.items():
        if path is not None:
            places.append(Place(f"--{name.replace('_', '-')} {path}", str(path)))
    for name, value in folders.items():
        if value is not None and _status(folder := os.path.expanduser(value)):  # noqa: PTH111
            option = f"--{name.replace('_', '-')} {value}"
            places.append(Place(option, folder, is_read_whole=True))
    return places


def check_places(places: Iterable[Place], manifest: str | None = None) -> None:
    """Refuse places that would replace or fill one another, or what the standard streams are.

    With a folder as ``manifest``, nothing may be written that the next run would take for a part of
    it.

    Raises:
        UsageError: names both.
    """
    found = [_Resolved.of(place) for place in (*places, *_STREAMS)]
    for writer in found:
        if not writer.place.written:
            continue
        for other in found:
            if writer is not other:
                _check_pair(writer, other)
        _check_foreign_run(writer)
        if manifest is not None and manifest != "-":
            _check_manifest_folder(writer, manifest)


_STREAMS = (
    Place("standard input", 0),
    Place("standard output", 1),
    Place("standard error", 2),
)


def is_stream(path: str) -> bool:
    """Whether nothing can be kept under that name: a device, a pipe, a socket, an open file."""
    if os.path.abspath(path).startswith(_OPEN_FILES):  # noqa: PTH100 - resolves no links
        return True
    status = _status(path)
    return status is not None and not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))


_OPEN_FILES = ("/proc/", "/dev/fd/", "/dev/stdin", "/dev/stdout", "/dev/stderr")


@dataclass(frozen=True, slots=True)
class _Resolved:
    """A place by all that tells it from others, also where it does not exist yet."""

    place: Place
    paths: frozenset[Path]  # without links; the second with the last name as given
    file: tuple[int, int] | None  # device and inode of a file that exists

    @classmethod
    def of(cls, place: Place) -> _Resolved:
        if isinstance(place.path, str) and is_url(place.path):
            return cls(place, frozenset({Path(place.path)}), None)
        status = _status(place.path)
        kept = status is not None and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))
        file = (status.st_dev, status.st_ino) if status is not None and kept else None
        if isinstance(place.path, int) or (status is not None and not kept):
            return cls(place, frozenset(), file)  # what is written to a device replaces nothing
        given = Path(os.path.abspath(place.path))  # noqa: PTH100 - resolves no links
        try:
            parent = Path(os.path.realpath(Path(place.path).parent))
            paths = {Path(os.path.realpath(place.path)), parent / given.name}
        except ValueError as error:  # a NUL character, in a configuration file
            raise UsageError(f"{place.name!r} is no path: {error}") from error
        return cls(place, frozenset(paths), file)

    def is_same(self, other: _Resolved) -> bool:
        return bool(self.paths & other.paths) or (self.file is not None and self.file == other.file)

    def is_within(self, other: _Resolved) -> bool:
        return any(path.is_relative_to(folder) for path in self.paths for folder in other.paths)


def _check_pair(writer: _Resolved, other: _Resolved) -> None:
    name, its_name = writer.place.name, other.place.name
    if name == its_name:  # one place by two names
        return
    if writer.is_same(other):
        if other.place.is_report:  # its name is the easier to change
            name, its_name = its_name, name
        raise UsageError(f"{name} is {its_name}: choose another name")
    if other.place.is_ours and writer.is_within(other):
        raise UsageError(f"{name} lies in {its_name}: choose another place")
    if writer.place.is_ours and other.is_within(writer):
        raise UsageError(f"{its_name} lies in {name}: choose another place for one of them")
    if other.place.is_read_whole and writer.place.is_report and writer.is_within(other):
        raise UsageError(
            f"{name} lies in {its_name}, whose files are the model's: choose another place"
        )


def _check_foreign_run(writer: _Resolved) -> None:
    """Refuse a file in the work folder of any run."""
    for folder in chain.from_iterable(path.parents for path in writer.paths):
        if folder.name.endswith(WORK_SUFFIX) and (folder / "lock").exists():
            raise UsageError(
                f"{writer.place.name} lies in {folder}, which lets a run be resumed: choose "
                "another place"
            )


def _check_manifest_folder(writer: _Resolved, manifest: str) -> None:
    from vlmbatch.manifest.sources import is_part_of_folder

    if not is_url(manifest) and not _is_folder(manifest):
        return
    folder = Path(manifest if is_url(manifest) else os.path.realpath(manifest))
    # What a folder of ours has in it: files of both kinds.
    inside = ("part-000000.parquet", "manifest.jsonl") if writer.place.is_ours else ("",)
    for path in writer.paths:
        if any(is_part_of_folder(path / name, folder) for name in inside):
            raise UsageError(
                f"{writer.place.name} lies in the manifest's folder {manifest}, and the next run "
                "would take it for a part of the manifest: choose another folder"
            )


def _is_folder(path: str) -> bool:
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _status(path: str | int) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - of descriptors too
    except (OSError, ValueError):  # not there, or no path: whoever opens it tells why
        return None
