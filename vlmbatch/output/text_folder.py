"""An answer a file: the folder of ``--write-text``."""

from __future__ import annotations

import contextlib
import hashlib
import os
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from vlmbatch.durable.durable_file import open_own, removed_on_failure, reported
from vlmbatch.errors import OutputError, UsageError
from vlmbatch.manifest.page_names import page_of
from vlmbatch.output.text_names import text_name

OWNERS = ".vlmbatch-text"  # in the folder: the outputs whose answers are written there, a line each
_TAG_DIGITS = 12


class TextFolder:
    """Files of answers below ``path``; each is there in whole or not at all.

    ``owner``: what the answers are written to besides, by its real path or URL, whose later runs
    may replace the files; None for a stream. Before ``write`` come ``check`` and ``claim``.

    Raises:
        OutputError: by every method, when the file system refuses.
    """

    def __init__(self, path: Path, owner: str | None, name: str | None = None) -> None:
        """``name``: what the user calls it."""
        self.path = path
        self.name = name or str(path)
        self.owner = owner
        tag = hashlib.sha256(os.fsencode(self.owner or str(os.getpid()))).hexdigest()
        # The same in each run on an output, so that what a kill has left is replaced.
        self.temporary = f".vlmbatch-{tag[:_TAG_DIGITS]}.tmp"
        self._checked: Path | None = None  # the last folder that was written to

    def check(self, ids: Callable[[], Iterable[str]], own: range, *, overwrite: bool) -> None:
        """Look at the ids of a manifest before any work; of them, ``own`` are this run's.

        Raises:
            UsageError: an id that makes no name of a file, two of one file, a file that is there
                and not of an earlier run on the same output, a folder that leads elsewhere.
        """
        is_ours = overwrite or self.is_owner()
        hashes = array("q")
        document = None
        for index, row_id in enumerate(ids()):
            name = self._name(row_id)
            page = page_of(row_id)
            if page is not None and page[0] == document:
                if index in (own.start, own.stop):
                    raise UsageError(
                        f"--write-text {self.name}: the pages of {document} are divided between "
                        f"two parts, before {row_id}: choose another number of parts"
                    )
                continue
            document = None if page is None else page[0]
            hashes.append(hash(name))
            if index in own:
                self.check_place(name, is_ours=is_ours)
        in_order = np.sort(np.frombuffer(hashes, np.int64))
        if repeated := frozenset(in_order[1:][in_order[1:] == in_order[:-1]].tolist()):
            self._refuse_repeated(ids(), repeated)

    def _refuse_repeated(self, ids: Iterable[str], repeated: frozenset[int]) -> None:
        """Look again at the names whose hashes are alike."""
        seen: dict[str, str] = {}
        for row_id in ids:
            name = self._name(row_id)
            if hash(name) not in repeated:
                continue
            page = page_of(row_id)
            source = row_id if page is None else page[0]
            if seen.setdefault(name, source) != source:
                raise UsageError(
                    f'--write-text {self.name}: the answers of "{seen[name]}" and "{source}" would '
                    f"both be {name}: rename one, or leave --write-text out"
                )

    def claim(self) -> None:
        """Create the folder, and note whose files it has from now on."""
        with reported(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if self.owner is None or self.is_owner():
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            with os.fdopen(open_own(self.path / OWNERS, flags), "ab") as file:
                file.write(os.fsencode(self.owner) + b"\n")

    def write(self, name: str, text: str) -> None:
        """Put a text in the file of that name, if it has not got it yet."""
        path = self.path / name
        data = f"{text}\n".encode(errors="replace")
        with reported(path):
            self._make_folder(path.parent)
            if _holds(path, data):
                return
            temporary = path.with_name(self.temporary)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            descriptor = open_own(temporary, flags)
            with removed_on_failure(temporary):
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                temporary.replace(path)

    def _name(self, row_id: str) -> str:
        try:
            return text_name(row_id)
        except ValueError as error:
            raise UsageError(
                f'--write-text {self.name}: the id "{row_id:.80}" {error}: name another column '
                "with --id-column"
            ) from error

    def check_place(self, name: str, *, is_ours: bool) -> None:
        """Refuse a file that is there, and not of an earlier run (``is_ours``).

        Raises:
            UsageError: names it.
        """
        path = self.path / name
        if path.parent != self._checked and path.parent.exists():
            self._check_inside(path.parent, UsageError)
            self._checked = path.parent
        if path.is_dir() or (not is_ours and os.path.lexists(path)):
            raise UsageError(
                f"--write-text {self.name}: {path} is there already, and not written by a run on "
                "the same output: name another folder, or replace what is there with --overwrite"
            )

    def _make_folder(self, folder: Path) -> None:
        if folder != self._checked:
            folder.mkdir(parents=True, exist_ok=True)
            self._check_inside(folder, OutputError)
            self._checked = folder

    def _check_inside(self, folder: Path, kind: type[UsageError] | type[OutputError]) -> None:
        root, real = os.path.realpath(self.path), os.path.realpath(folder)
        if not Path(real).is_relative_to(root):
            raise kind(f"--write-text {self.name}: {folder} leads to {real}, out of the folder")

    def is_owner(self) -> bool:
        """Whether the files there are of earlier runs on the same output."""
        if self.owner is None:
            return False
        try:
            lines = (self.path / OWNERS).read_bytes().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise OutputError(f"{self.path / OWNERS}: cannot be read: {error.strerror}") from error
        return os.fsencode(self.owner) in lines


def _holds(path: Path, data: bytes) -> bool:
    with contextlib.suppress(FileNotFoundError):
        if path.is_symlink() or path.stat().st_size != len(data):
            return False
        return path.read_bytes() == data
    return False
