"""The images below a folder, by the names of their files, in order."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from vlmbatch.errors import ManifestError
from vlmbatch.log import logger

_KINDS = "jpg jpeg jpe jfif png webp gif bmp tif tiff avif heic heif hif"
IMAGE_SUFFIXES = tuple(f".{kind}" for kind in _KINDS.split())
_WILDCARDS = "*?["
ALL = ("**", "*")


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


class PatternTree(ABC):
    """The files below a folder whose relative path matches ``patterns``, a name each (``**``: any
    folders, or none), and whose name is one ``of`` those that are wanted.

    In each folder names come in the order of their bytes, with what a folder holds where its name
    stands: the names of one folder are held at a time, and of those above it. Names that begin with
    a dot are left out.
    """

    def __init__(self, patterns: Sequence[str], of: Callable[[str], bool]) -> None:
        self._patterns = patterns
        self._is_wanted = of
        self.left_out: Counter[str] = Counter()  # by suffix: files that match, and are not wanted

    def paths(self) -> Iterator[str]:
        """Paths relative to the folder.

        Raises:
            ManifestError: a folder cannot be read.
        """
        self.left_out.clear()
        yield from self._below("", self._closed({0}))

    @abstractmethod
    def _entries(self, folder: str) -> list[tuple[str, bool]]:
        """The names in a folder, a relative path that ends in a slash, and whether it is a folder
        itself; none of a folder that has gone."""

    def _below(self, folder: str, places: frozenset[int]) -> Iterator[str]:
        """``places``: how far the patterns may have got with the folder's path."""
        entries = [entry for entry in self._entries(folder) if entry[0][0] != "."]
        for name, is_folder in sorted(entries, key=lambda entry: os.fsencode(entry[0])):
            after = self._after(places, name)
            path = folder + name
            if is_folder:
                if any(place < len(self._patterns) for place in after):
                    yield from self._below(f"{path}/", after)
            elif len(self._patterns) in after:
                if self._is_wanted(name):
                    yield path
                else:
                    self.left_out[os.path.splitext(name)[1].lower() or name] += 1  # noqa: PTH122

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


class ImageTree(PatternTree):
    """Images and PDFs below ``base``, named as the file system names them (surrogateescape).

    Links are followed, and no folder is read twice.
    """

    def __init__(self, base: Path, patterns: Sequence[str] = ALL) -> None:
        super().__init__(patterns, lambda name: is_image_name(name) or is_document_name(name))
        self._base = base
        self._seen: set[tuple[int, int]] = set()  # by this pass

    def paths(self) -> Iterator[str]:
        self._seen.clear()
        yield from super().paths()

    def _entries(self, folder: str) -> list[tuple[str, bool]]:
        path = self._base / folder
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in self._seen:
                logger.info("%s: left out, a link to a folder that is read already", path)
                return []
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                return [(each.name, _is_folder(each)) for each in entries]
        except FileNotFoundError as error:
            if folder:  # gone since its name was read
                return []
            raise ManifestError(f"{path}: no such folder") from error
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: no folder, and an error of its row if it is to be an image
        return False
