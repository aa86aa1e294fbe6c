"""A file in parts, of which several are sent at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

PART_BYTES = 8 * 2**20
THREADS = 4

T = TypeVar("T")


class FileParts:
    """The parts of the file ``source``, counted from 1: all of one length, the last one excepted.

    There are ``max_parts`` at most, and more than one of a file that is larger than a part.
    ``identity`` is another one when the file or its division is.
    """

    def __init__(self, source: Path, max_parts: int) -> None:
        self._source = source
        status = source.stat()
        self.size = status.st_size
        self.part_bytes = max(PART_BYTES, -(-self.size // max_parts))
        self.identity = [self.size, status.st_mtime_ns, status.st_ino, self.part_bytes]
        self.numbers = range(1, -(-self.size // self.part_bytes) + 1)

    def length(self, number: int) -> int:
        """The bytes of a part."""
        return min(self.part_bytes, self.size - (number - 1) * self.part_bytes)

    def read(self, number: int) -> bytes:
        return self.read_at((number - 1) * self.part_bytes)

    def read_at(self, start: int) -> bytes:
        """As many bytes as a part has, from the byte ``start``."""
        with self._source.open("rb") as file:
            file.seek(start)
            return file.read(self.part_bytes)

    def send(
        self, numbers: Iterable[int], send: Callable[[int], T], sent: Callable[[int], None]
    ) -> dict[int, T]:
        """What ``send`` returns for each part, called on ``THREADS`` threads.

        ``sent`` is told of their bytes on the caller's thread, which raises what ``send`` does.
        """
        missing = list(numbers)
        todo, done = deque(missing), SimpleQueue[tuple[int, T | BaseException]]()

        def work() -> None:
            while todo:
                with suppress(IndexError):  # another thread has taken the last one
                    number = todo.popleft()
                    try:
                        done.put((number, send(number)))
                    except BaseException as error:  # noqa: BLE001  raised again on the caller's
                        done.put((number, error))

        for _ in range(min(THREADS, len(missing))):
            Thread(target=work, name="put", daemon=True).start()  # no signal waits for them
        results = {}
        for _ in missing:
            number, result = done.get()
            if isinstance(result, BaseException):
                todo.clear()
                raise result
            results[number] = result
            sent(self.length(number))
        return results
