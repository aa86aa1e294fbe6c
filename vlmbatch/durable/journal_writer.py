"""Makes finished rows durable in groups, in any order."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from vlmbatch.durable.crash_points import crash_point
from vlmbatch.durable.durable_file import FILES, DurableFile, FileSystem, reported
from vlmbatch.durable.journal_frames import encode_frame, segment_header, segment_salt
from vlmbatch.errors import OutputError
from vlmbatch.types import Result

_GROUP_ROWS = 256
_GROUP_SECONDS = 1.0
_GROUP_BYTES = 2**20
_SEGMENT_BYTES = 32 * 2**20

_SEGMENT_NAME = re.compile(r"journal-([0-9]{6,})")


class JournalWriter:
    """Appends results to new segments in ``folder``; those of earlier processes stay as they are.

    A row is acknowledged, and survives any crash, once ``sync`` has returned after its ``append``.
    That happens by itself after 256 rows, 1 MiB or, if ``sync_if_due`` is called often enough, a
    second. Rows that are not yet acknowledged are held in memory: a write for each of them would
    give up the interpreter lock, and wait to get it back, for each of them. Not thread-safe.

    ``run_id``: 16 bytes that the segments carry.

    Raises:
        OutputError: by every method, when the file system refuses. From then on nothing more is
            written, as the state of what was under way is unknown; the next run recovers it.
    """

    def __init__(
        self,
        folder: Path,
        run_id: bytes,
        *,
        files: FileSystem = FILES,
        clock: Callable[[], float] = time.monotonic,
        segment_bytes: int = _SEGMENT_BYTES,
    ) -> None:
        self._folder = folder
        self._run_id = run_id
        self._files = files
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._number = max((number for number, _ in list_segments(folder)), default=0)
        self._segment: DurableFile | None = None
        self._named = False  # the folder's entry of the segment is durable
        self._salt = 0
        self._group = bytearray()
        self._group_rows = 0
        self._due = math.inf
        self._failure: OutputError | None = None
        self.num_acknowledged = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def append(self, result: Result) -> None:
        """Take a result. Of several for one row, recovery finds the last."""
        if self._failure is not None:
            raise self._failure
        if self._segment is None:
            self._open_segment()
        if self._group_rows == 0:
            self._due = self._clock() + _GROUP_SECONDS
        self._group += encode_frame(result, self._salt)
        self._group_rows += 1
        if self._group_rows >= _GROUP_ROWS or len(self._group) >= _GROUP_BYTES:
            self.sync()
        else:
            self.sync_if_due()

    def sync_if_due(self) -> None:
        """Acknowledge what has waited for a second. To be called while no results come."""
        if self._group_rows and self._clock() >= self._due:
            self.sync()

    def sync(self) -> None:
        """Acknowledge all that was appended."""
        if self._failure is not None:
            raise self._failure
        segment = self._segment
        if segment is None or self._group_rows == 0:
            return
        try:
            with reported(segment.path):
                segment.write(self._group)
                crash_point("journal.written")
                segment.sync()
                crash_point("journal.synced")
                if not self._named:
                    self._files.fsync_folder(self._folder)
                    self._named = True
        except OutputError as error:
            self._failure = error
            raise
        self.num_acknowledged += self._group_rows
        crash_point("journal.acknowledged")
        self._group = bytearray()
        self._group_rows = 0
        if segment.tell() >= self._segment_bytes:
            self._close_segment()

    def close(self) -> None:
        """Acknowledge what is left. After a failure, which was raised before, only let go.

        Does nothing when called again.
        """
        try:
            if self._failure is None:
                self.sync()
        finally:
            self._close_segment()

    def _open_segment(self) -> None:
        number = self._number + 1
        path = segment_path(self._folder, number)
        try:
            with reported(path):
                self._segment = DurableFile(path, self._files, flags=os.O_EXCL)
        except OutputError as error:
            self._failure = error
            raise
        crash_point("journal.segment_created")
        self._number = number
        self._named = False
        header = segment_header(self._run_id, number)
        self._salt = segment_salt(header)
        self._group += header

    def _close_segment(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"journal-{number:06}"


def list_segments(folder: Path) -> list[tuple[int, Path]]:
    """The segments in ``folder``, of whatever run, with their numbers, in order.

    Raises:
        OutputError: the folder cannot be read.
    """
    with reported(folder):
        found = [
            (int(match[1]), path)
            for path in folder.iterdir()
            if (match := _SEGMENT_NAME.fullmatch(path.name))
        ]
    return sorted(found)
