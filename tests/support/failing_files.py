"""File systems that fail: two lose power, one refuses a chosen call."""

from __future__ import annotations

import atexit
import os
import random
from collections import defaultdict
from pathlib import Path

from vlmbatch.durable.durable_file import FileSystem

Names = dict[str, int]  # a folder's entries: the node each name stands for


class PowerCut(BaseException):
    """The machine is off; whatever is called after it raises it again."""


class UnsyncedFiles(FileSystem):
    """Leaves out the waiting: nothing in a test outlives the machine."""

    def fsync(self, descriptor: int) -> None:
        pass

    def fsync_folder(self, path: Path) -> None:
        path.stat()


class CountedFiles(UnsyncedFiles):
    """Numbers the calls, and lets a subclass intervene at number ``at``."""

    def __init__(self, at: int | None = None) -> None:
        self.calls: list[str] = []
        self._at = at

    def _is_the_one(self, name: str) -> bool:
        self.calls.append(name)
        return len(self.calls) - 1 == self._at


class VolatileFiles(CountedFiles):
    """Real files below ``root``, and beside them what would be left of them after a power cut.

    A file's content is safe as of its last fsync, a folder's names as of the folder's. ``at``
    numbers the call at which the power goes. Calls named in ``pretended`` return without effect, as
    if the program under test had left them out.
    """

    def __init__(
        self, root: Path, at: int | None = None, pretended: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(at)
        self._root = root
        self.pretended = pretended
        self._off = False
        self._nodes: dict[Path, int] = {}
        self._folders: dict[int, Path] = {}
        self._descriptors: dict[int, int] = {}
        self._live: dict[int, bytes] = {}
        self._safe: dict[int, bytes] = {}
        # A folder's entries after each change since its last fsync, which comes first.
        self._names: dict[Path, list[Names]] = defaultdict(lambda: [{}])
        for path in sorted(root.rglob("*")):
            node = self._new_node(path)
            if path.is_dir():
                self._folders[node] = path
            else:
                self._live[node] = self._safe[node] = path.read_bytes()
        for folder in [root, *self._folders.values()]:
            self._names[folder] = [self._current_names(folder)]

    def open(self, path: Path, flags: int) -> int:
        self._step("open")
        descriptor = super().open(path, flags)
        if path not in self._nodes:
            node = self._new_node(path)
            self._live[node] = self._safe[node] = b""
            self._note_names(path.parent)
        self._descriptors[descriptor] = self._nodes[path]
        if flags & os.O_TRUNC:
            self._live[self._nodes[path]] = b""
        return descriptor

    def write(self, descriptor, data) -> int:
        cut = self._is_off_at("write")
        taken = bytes(data)[: len(data) // 2] if cut else bytes(data)
        self._live[self._descriptors[descriptor]] += taken
        if cut:
            raise PowerCut
        return super().write(descriptor, taken)

    def fsync(self, descriptor: int) -> None:
        self._step("fsync")
        node = self._descriptors[descriptor]
        if "fsync" not in self.pretended:
            self._safe[node] = self._live[node]

    def truncate(self, descriptor: int, size: int) -> None:
        self._step("truncate")
        super().truncate(descriptor, size)
        node = self._descriptors[descriptor]
        self._live[node] = self._live[node][:size]

    def replace(self, source: Path, target: Path) -> None:
        self._step("replace")
        super().replace(source, target)
        self._nodes[target] = self._nodes.pop(source)
        self._note_names(target.parent)

    def unlink(self, path: Path) -> None:
        self._step("unlink")
        super().unlink(path)
        del self._nodes[path]
        self._note_names(path.parent)

    def make_folder(self, path: Path) -> None:
        self._step("make_folder")
        super().make_folder(path)
        if path not in self._nodes:
            self._folders[self._new_node(path)] = path
            self._note_names(path.parent)

    def fsync_folder(self, path: Path) -> None:
        self._step("fsync_folder")
        if "fsync_folder" not in self.pretended:
            self._names[path] = [self._current_names(path)]

    def survive(self, target: Path, rng: random.Random | None = None) -> None:
        """Write what is left into the folder ``target``.

        Without ``rng``, all that is not safe is lost. With it, any of it may be there: a folder's
        changes up to any of them, and of a file's content any blocks.
        """
        self._survive(self._root, target, rng)

    def _survive(self, folder: Path, target: Path, rng: random.Random | None) -> None:
        target.mkdir()
        versions = self._names[folder]
        for name, node in (rng.choice(versions) if rng else versions[0]).items():
            if node in self._folders:
                self._survive(self._folders[node], target / name, rng)
            else:
                (target / name).write_bytes(self._content(node, rng))

    def _content(self, node: int, rng: random.Random | None) -> bytes:
        safe, live = self._safe[node], self._live[node]
        if rng is None or safe == live:
            return safe
        size = rng.choice([len(safe), len(live), rng.randint(*sorted((len(safe), len(live))))])
        block = 64
        content = bytearray()
        for start in range(0, size, block):
            source = rng.choice([safe, live])
            content += source[start : start + block].ljust(block, b"\0")
        # What both versions start with is on the disk.
        different = (
            at for at, pair in enumerate(zip(safe, live, strict=False)) if len({*pair}) > 1
        )
        common = next(different, min(len(safe), len(live)))
        content[:common] = safe[: min(common, size)]
        return bytes(content[:size])

    def _step(self, name: str) -> None:
        if self._is_off_at(name):
            raise PowerCut

    def _is_off_at(self, name: str) -> bool:
        if self._off:
            raise PowerCut
        self._off = self._is_the_one(name)
        return self._off

    def _new_node(self, path: Path) -> int:
        self._nodes[path] = node = len(self._safe) + len(self._folders)
        return node

    def _current_names(self, folder: Path) -> Names:
        return {path.name: node for path, node in self._nodes.items() if path.parent == folder}

    def _note_names(self, folder: Path) -> None:
        self._names[folder].append(self._current_names(folder))


class FaultyFiles(CountedFiles):
    """Raises ``OSError(number)`` at call ``at`` and, as a full disk does, at each later one of the
    same kind; a write takes half of the data before. With ``number`` None, that write is short.

    ``kind`` counts the calls of one kind only.
    """

    def __init__(
        self, at: int | None = None, number: int | None = None, kind: str | None = None
    ) -> None:
        super().__init__(at)
        self._kind = kind
        self._number = number
        self._failing: str | None = None

    def _is_the_one(self, name: str) -> bool:
        return self._kind in (None, name) and super()._is_the_one(name)

    def open(self, path: Path, flags: int) -> int:
        self._step("open")
        return super().open(path, flags)

    def write(self, descriptor, data) -> int:
        if self._failing == "write":
            self._raise()
        if self._is_the_one("write"):
            self._failing = "write" if self._number is not None else None
            return super().write(descriptor, bytes(data)[: max(1, len(data) // 2)])
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._step("fsync")
        super().fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        self._step("truncate")
        super().truncate(descriptor, size)

    def replace(self, source: Path, target: Path) -> None:
        self._step("replace")
        super().replace(source, target)

    def unlink(self, path: Path) -> None:
        self._step("unlink")
        super().unlink(path)

    def make_folder(self, path: Path) -> None:
        self._step("make_folder")
        super().make_folder(path)

    def fsync_folder(self, path: Path) -> None:
        self._step("fsync_folder")
        super().fsync_folder(path)

    def _step(self, name: str) -> None:
        if self._is_the_one(name) and self._number is not None:
            self._failing = name
        if self._failing == name:
            self._raise()

    def _raise(self) -> None:
        assert self._number is not None
        raise OSError(self._number, os.strerror(self._number))


class WriteBehindFiles(UnsyncedFiles):
    """Keeps in the process what was not synced, so that SIGKILL loses it as a power cut would.

    Names of files are there at once, their content after an fsync, or after an orderly exit.
    """

    def __init__(self) -> None:
        self._behind: dict[int, tuple[int, bytearray]] = {}  # by inode: a descriptor, and content
        atexit.register(self._write_all)

    def write(self, descriptor: int, data) -> int:
        inode = os.fstat(descriptor).st_ino
        if inode not in self._behind:
            self._behind[inode] = os.dup(descriptor), bytearray()
        self._behind[inode][1].extend(data)
        return len(data)

    def fsync(self, descriptor: int) -> None:
        self._write(os.fstat(descriptor).st_ino)

    def truncate(self, descriptor: int, size: int) -> None:
        self.fsync(descriptor)
        super().truncate(descriptor, size)

    def _write(self, inode: int) -> None:
        if inode not in self._behind:
            return
        descriptor, data = self._behind.pop(inode)
        while data:
            del data[: os.write(descriptor, data)]
        os.close(descriptor)

    def _write_all(self) -> None:
        for inode in [*self._behind]:
            self._write(inode)
