"""The files of a manifest in an object store: an object, a folder, a pattern, images."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from vlmbatch.config import ManifestConfig
from vlmbatch.errors import ManifestError
from vlmbatch.manifest.braces import expand_braces, is_brace_pattern
from vlmbatch.manifest.image_folder import ImageFolder
from vlmbatch.manifest.image_tree import (
    ALL,
    IMAGE_SUFFIXES,
    PatternTree,
    is_image_name,
    is_pattern,
    split_pattern,
)
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
from vlmbatch.manifest.remote_file import RemoteFile, store_errors
from vlmbatch.manifest.scan import ManifestFile
from vlmbatch.remote.errors import RemoteMissingError
from vlmbatch.remote.filesystem import RemotePath, open_filesystem
from vlmbatch.remote.objects import list_folder, object_info

_HUB_DATASET = re.compile(r"datasets/[^/]+/[^/@]+(?:@(?:refs/(?:convert|pr)/)?[^/]+)?")


def find_remote_files(
    config: ManifestConfig, asked: tuple[str, ...] = ()
) -> tuple[Sequence[ManifestFile], str]:
    """As ``find_files``, of a source that is the URL of a store; the folder is a URL too.

    A pattern may name manifests of one kind as well as images. Of a dataset on the Hugging Face Hub
    all Parquet files are read.

    Raises:
        ManifestError: nothing there, nothing of one known kind, or the store refuses.
        ConfigError: there is no such scheme, or what reads it is not installed.
        RemoteFailedError: the store cannot be reached.
    """
    source = config.source
    place = open_filesystem(source)
    if not place.path:
        raise ManifestError(f"{source}: names no bucket")
    place = place.at(place.path)  # without a slash at the end
    with store_errors():
        try:
            kind = object_info(place)["type"]
        except RemoteMissingError:
            if is_brace_pattern(place.path):
                return _named(_expanded(place), config, asked)
            if is_pattern(place.path):
                return _matching(place, config, asked)
            raise
        if kind == "directory":
            return _folder(place, config, asked)
    path = PurePosixPath(place.path)
    if is_image_name(path.name):
        return _images(config, _parent(place), (glob.escape(path.name),))
    if not is_manifest(path):
        raise unknown_kind(source)
    return _named([place], config, asked)


def _named(
    places: Sequence[RemotePath], config: ManifestConfig, asked: tuple[str, ...]
) -> tuple[Sequence[ManifestFile], str]:
    check_one_kind([place.url for place in places])
    refuse_folder_options(config)
    files = [manifest_file(RemoteFile(place), config, asked) for place in places]
    return files, _parent(places[0]).url


def _expanded(place: RemotePath) -> list[RemotePath]:
    places = [place.at(path) for path in expand_braces(place.path)]
    for each in places:
        try:
            object_info(each)
        except RemoteMissingError as error:
            raise ManifestError(
                f"{each.url}: no such manifest, and the pattern names it"
            ) from error
    return places


def _matching(
    place: RemotePath, config: ManifestConfig, asked: tuple[str, ...]
) -> tuple[Sequence[ManifestFile], str]:
    base, patterns = split_pattern(place.path)
    folder = place.at(str(base))
    paths = list(RemoteTree(folder, patterns, _is_manifest_name).paths())
    if not paths:
        return _images(config, folder, patterns)
    files, _ = _named([folder.child(path) for path in paths], config, asked)
    return files, folder.url


def _folder(
    place: RemotePath, config: ManifestConfig, asked: tuple[str, ...]
) -> tuple[Sequence[ManifestFile], str]:
    if place.scheme == "hf" and _HUB_DATASET.fullmatch(place.path):
        tree = RemoteTree(place, ("**", "*.parquet"), _is_manifest_name)
        if paths := list(tree.paths()):
            files, _ = _named([place.child(path) for path in paths], config, asked)
            return files, place.url
    folder = PurePosixPath(place.path)
    found = sorted(PurePosixPath(each.path) for each in _files_below(place))
    if not found:
        return _images(config, place, ALL)
    check_folder(place.url, [path.relative_to(folder) for path in found])
    refuse_folder_options(config)
    files = []
    for path in found:
        file = manifest_file(RemoteFile(place.at(str(path))), config, asked)
        partition = partition_of(path, folder)
        files.append(PartitionedFile(file, partition) if partition else file)
    return files, place.url


def _files_below(folder: RemotePath) -> Iterator[RemotePath]:
    for name, is_folder in list_folder(folder):
        path = PurePosixPath(name)
        if name[0] in "._":
            continue
        if is_folder and is_partition(path):
            yield from _files_below(folder.child(name))
        elif not is_folder and is_manifest(path):
            yield folder.child(name)


def _images(
    config: ManifestConfig, folder: RemotePath, patterns: Sequence[str]
) -> tuple[Sequence[ManifestFile], str]:
    source = config.source
    tree = RemoteTree(folder, patterns, is_image_name)
    if not list(islice(tree.paths(), 1)):
        raise ManifestError(
            f"{source}: nothing there is an image by its name ({', '.join(IMAGE_SUFFIXES)}), or "
            f"ends in {KINDS}"
        )
    if config.sidecars or config.pages is not None:
        option = "--pages" if config.pages is not None else "--sidecar"
        raise ManifestError(
            f"{source}: {option} is for folders of this machine: copy the folder, or name its "
            "images in a manifest"
        )
    return [ImageFolder(source, Path(), tree, config)], folder.url


class RemoteTree(PatternTree):
    """The objects below ``folder``; ``wanted`` by their names."""

    def __init__(
        self, folder: RemotePath, patterns: Sequence[str], wanted: Callable[[str], bool]
    ) -> None:
        super().__init__(patterns, wanted)
        self._folder = folder

    def _entries(self, folder: str) -> list[tuple[str, bool]]:
        place = self._folder.child(folder.rstrip("/")) if folder else self._folder
        with store_errors():
            return list_folder(place)


def _is_manifest_name(name: str) -> bool:
    return is_manifest(PurePosixPath(name))


def _parent(place: RemotePath) -> RemotePath:
    return place.at(place.path.rpartition("/")[0])
