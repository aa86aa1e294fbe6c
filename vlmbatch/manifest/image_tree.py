"""The images below a folder, by the names of their files, in order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from vlmbatch.errors import ManifestError
from vlmbatch.log import logger

_KINDS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff")
IMAGE_SUFFIXES = tuple(f".{kind}" for kind in _KINDS)
_WILDCARDS = "*?["
_ALL = ("**", "*")


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image where nothing but names tells."""
    return name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "."


def is_document_name(name: str) -> bool:
    """Whether a file is taken for a PDF."""
    return name.lower().endswith(".pdf") and name[0] != "."


def is_pattern(source: str) -> bool:
    """Whether a path that does not exist is meant as a pattern."""
    return any(character in source for character in _WILDCARDS)


def split_pattern(source: str) -> tuple[Path, tuple[str, ...]]:
    """The folder before the first wildcard of a pattern, and the names from there on."""
    parts = Path(source).parts
    first = next(place for place, part in enumerate(parts) if is_pattern(part))
    return Path(*parts[:first]), parts[first:]


class ImageTree:
    """Images and PDFs below ``base`` whose relative path matches ``patterns``, a name each (``**``:
    any folders, or none).

    In each folder names come in the order of their bytes, with what a folder holds where its name
    stands: the names of one folder are held at a time, and of those above it. Links are followed,
    and no folder is read twice. Names that begin with a dot are left out.
    """

    def __init__(self, base: Path, patterns: Sequence[str] = _ALL) -> None:
        self._base = base
        self._patterns = patterns
        self.left_out: Counter[str] = Counter()  # by suffix: files that match, and are no images

    def paths(self) -> Iterator[str]:
        """Paths relative to the base, as the file system names them (surrogateescape).

        Raises:
            ManifestError: a folder cannot be read.
        """
        self.left_out.clear()
        yield from self._below("", self._closed({0}), set())

    def _below(
        self, folder: str, places: frozenset[int], seen: set[tuple[int, int]]
    ) -> Iterator[str]:
        """``places``: how far the patterns may have got with the folder's path."""
        for name, is_folder in self._entries(folder, seen):
            after = self._after(places, name)
            path = folder + name
            if is_folder:
                if any(place < len(self._patterns) for place in after):
                    yield from self._below(f"{path}/", after, seen)
            elif len(self._patterns) in after:
                if is_image_name(name) or is_document_name(name):
                    yield path
                else:
                    self.left_out[os.path.splitext(name)[1].lower() or name] += 1  # noqa: PTH122

    def _entries(self, folder: str, seen: set[tuple[int, int]]) -> list[tuple[str, bool]]:
        path = self._base / folder
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in seen:
                logger.info("%s: left out, a link to a folder that is read already", path)
                return []
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                found = [(each.name, _is_folder(each)) for each in entries if each.name[0] != "."]
        except FileNotFoundError as error:
            if folder:  # gone since its name was read
                return []
            raise ManifestError(f"{path}: no such folder") from error
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error
        return sorted(found, key=lambda entry: os.fsencode(entry[0]))

    def _after(self, places: frozenset[int], name: str) -> frozenset[int]:
        after = set()
        for place in places:
            if place == len(self._patterns):
                continue
            if self._patterns[place] == "**":
                after.add(place)
            elif fnmatchcase(name, self._patterns[place]):
                after.add(place + 1)
        return self._closed(after)

    def _closed(self, places: set[int]) -> frozenset[int]:
        """With the places behind each ``**`` that may stand for nothing."""
        for place, pattern in enumerate(self._patterns):
            if pattern == "**" and place in places:
                places.add(place + 1)
        return frozenset(places)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: no folder, and an error of its row if it is to be an image
        return False
