"""Finds the finished rows of a run again, after whatever ended it."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlmbatch.durable.crash_points import crash_point
from vlmbatch.durable.durable_file import FILES, FileSystem, open_own, reported
from vlmbatch.durable.journal_frames import (
    FRAME_BYTES,
    ForeignVersionError,
    SegmentScan,
    decode_result,
    frame_length,
    frame_payload,
    scan_segment,
    segment_header,
    segment_salt,
)
from vlmbatch.durable.journal_writer import list_segments, segment_path
from vlmbatch.errors import OutputError
from vlmbatch.types import Result, Row

_ABSENT = -1
_OFFSET_BITS = 32
_READ_BYTES = 4096  # most frames are shorter
_MAX_OPEN = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment that cannot be read though readable ones follow; their rows count as
    not finished."""

    path: Path
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.path}: {self.end - self.start} bytes from {self.start}"


class Journal:
    """The finished rows of the run ``run_id``, by row index: eight bytes of memory a row.

    Opening it only reads: a journal that is being written may be opened too. Of several results for
    one row the last counts. Bytes that cannot be read lose no row, as a row that is not found is
    computed again; those that do not simply end the journal are named in ``damage``.
    Safe to read from many threads.

    Raises:
        OutputError: a segment cannot be read, or was written by another version, or holds a row
            that the manifest does not have.
    """

    def __init__(self, folder: Path, run_id: bytes, num_rows: int) -> None:
        self._folder = folder
        self._run_id = run_id
        self._positions: NDArray[np.int64] = np.full(num_rows, _ABSENT, np.int64)
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()
        self._last: tuple[Path, int] | None = None  # the last segment, and where its frames end
        self._tail: Damage | None = None  # what stands behind them
        self.damage: list[Damage] = []
        for number, path in list_segments(folder):
            self._load(number, path)

    @classmethod
    def recover(
        cls, folder: Path, run_id: bytes, num_rows: int, files: FileSystem = FILES
    ) -> Journal:
        """Open the journal of a run that has ended, and cut off what a crash left of its last
        write. All rows that it then has survive the next crash as well."""
        journal = cls(folder, run_id, num_rows)
        if journal._last is not None:
            path, end = journal._last
            with reported(path):
                descriptor = files.open(path, os.O_RDWR)
                try:
                    files.truncate(descriptor, end)
                    files.fsync(descriptor)
                finally:
                    os.close(descriptor)
                files.fsync_folder(folder)
            crash_point("journal.tail_cut")
        for damage in journal.damage:
            logger.warning("%s cannot be read: the rows in it are computed again", damage)
        return journal

    def __len__(self) -> int:
        """How many rows are finished."""
        return int(np.count_nonzero(self._positions != _ABSENT))

    def __contains__(self, row_index: int) -> bool:
        return bool(self._positions[row_index] != _ABSENT)

    def rows(self) -> NDArray[np.int64]:
        """The indexes of the finished rows, ascending. Shape (len(self),)."""
        return np.flatnonzero(self._positions != _ABSENT)

    def read(self, row_index: int) -> Result:
        """The result of a finished row, without pass-through columns.

        Raises:
            KeyError: the row is not finished.
            OutputError: its bytes are no longer what they were when the journal was opened.
        """
        position = int(self._positions[row_index])
        if position == _ABSENT:
            raise KeyError(row_index)
        number, offset = position >> _OFFSET_BITS, position & (1 << _OFFSET_BITS) - 1
        path = segment_path(self._folder, number)
        salt = segment_salt(segment_header(self._run_id, number))
        payload = frame_payload(self._frame(number, path, offset), salt)
        if payload is None:
            raise OutputError(
                f"{path}: the result of row {row_index}, at byte {offset}, has changed since the "
                "journal was opened. Check the disk, then run again"
            )
        try:
            return decode_result(row_index, payload)
        except ForeignVersionError as error:
            raise foreign_segment(path, error) from error

    def result_of(self, row: Row) -> Result | None:
        """The result of a row of the manifest with its pass-through columns; None: not finished.

        Raises:
            OutputError: the result cannot be read, or is that of another id.
        """
        if row.index not in self:
            return None
        result = self.read(row.index)
        if result.id != row.id:
            raise OutputError(
                f'{self._folder}: row {row.index} is "{row.id}" in the manifest but "{result.id}" '
                "in the journal. Run with --overwrite to start anew"
            )
        return result.of_row(row, row.error)

    def close(self) -> None:
        """Close the segments' files."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def _load(self, number: int, path: Path) -> None:
        try:
            with os.fdopen(open_own(path, os.O_RDONLY, follow=True), "rb") as file:
                data = file.read()
            scan = scan_segment(data, self._run_id, number)
        except OSError as error:
            raise unreadable_segment(path, error) from error
        except ForeignVersionError as error:
            raise foreign_segment(path, error) from error
        if scan is None:
            return
        if self._tail is not None:  # only the last segment can end in a write that was under way
            self.damage.append(self._tail)
        self.damage += [Damage(path, start, end) for start, end in scan.gaps]
        self._tail = Damage(path, scan.end, len(data)) if scan.end < len(data) else None
        self._last = (path, scan.end)
        self._place(number, path, scan)

    def _place(self, number: int, path: Path, scan: SegmentScan) -> None:
        if not scan.rows:
            return
        rows = np.array(scan.rows, np.uint64)
        if rows.max() >= len(self._positions):
            raise OutputError(
                f"{path}: holds row {rows.max()}, but the manifest has {len(self._positions)} "
                "rows. Run with --overwrite to start anew"
            )
        # Of equal indexes the last assignment stays, as numpy documents.
        offsets = np.array(scan.offsets, np.int64)
        self._positions[rows.astype(np.int64)] = (number << _OFFSET_BITS) | offsets

    def _frame(self, number: int, path: Path, offset: int) -> bytes:
        """The bytes of the frame at ``offset``, fewer when the file ends before."""
        with self._lock:
            try:
                descriptor = self._descriptor(number, path)
                data = os.pread(descriptor, _READ_BYTES, offset)
                length = frame_length(data) if len(data) >= FRAME_BYTES else 0
                while length > len(data):
                    more = os.pread(descriptor, length - len(data), offset + len(data))
                    if not more:
                        break
                    data += more
            except OSError as error:
                raise unreadable_segment(path, error) from error
        return data[:length]

    def _descriptor(self, number: int, path: Path) -> int:
        if number in self._descriptors:
            self._descriptors.move_to_end(number)
        else:
            if len(self._descriptors) == _MAX_OPEN:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptors[number]


def unreadable_segment(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be read: {error.strerror}. Check the disk and the folder's permissions, "
        "then run again; or run with --overwrite to start anew"
    )


def foreign_segment(path: Path, error: ForeignVersionError) -> OutputError:
    return OutputError(
        f"{path} was written by another version of vlmbatch ({error}). Finish the run with that "
        "version, or run with --overwrite to start anew"
    )
