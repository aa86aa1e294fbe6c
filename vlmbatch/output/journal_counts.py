"""What a journal holds, counted in bounded memory: also while a run writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vlmbatch.durable.journal import foreign_segment, unreadable_segment
from vlmbatch.durable.journal_frames import (
    FRAME_BYTES,
    ForeignVersionError,
    decode_result,
    frame_end,
    holds_answer,
    scan_segment,
)
from vlmbatch.durable.journal_writer import list_segments
from vlmbatch.errors import ErrorCode, OutputError
from vlmbatch.output.reader import OutputCounts
from vlmbatch.types import ErrorExample, Result

_UNFINISHED, _ANSWERED, _FIRST_ERROR = 0, 1, 2
_CODES = list(ErrorCode)


def read_journal_counts(
    folder: Path, run_id: bytes, num_rows: int, first_row: int = 0
) -> OutputCounts:
    """Count the finished rows and the errors of a run: a byte of memory a row, and a segment.

    Of several results for one row the last counts. ``first_row``: where in the manifest the run's
    first row stands.

    Raises:
        OutputError: a segment cannot be read, was written by another version, or holds a row that
            the run does not have. Its cause is FileNotFoundError when the run was completed or
            replaced meanwhile.
    """
    states = np.zeros(num_rows, np.uint8)
    examples: dict[ErrorCode, Result] = {}
    for number, path in list_segments(folder):
        try:
            for row, error in _results(path.read_bytes(), run_id, number):
                if row >= num_rows:
                    raise OutputError(
                        f"{path}: holds row {row}, but the run has {num_rows} rows. Run with "
                        "--overwrite to start anew"
                    )
                states[row] = _ANSWERED
                if error is not None and error.error_code is not None:
                    states[row] = _FIRST_ERROR + _CODES.index(error.error_code)
                    known = examples.setdefault(error.error_code, error)
                    if row < known.index:
                        examples[error.error_code] = error
        except OSError as error:
            raise unreadable_segment(path, error) from error
        except ForeignVersionError as error:
            raise foreign_segment(path, error) from error
    by_state = np.bincount(states, minlength=_FIRST_ERROR + len(_CODES))
    counts = OutputCounts(num_rows - int(by_state[_UNFINISHED]))
    for code, count in zip(_CODES, by_state[_FIRST_ERROR:].tolist(), strict=True):
        if count:
            counts.errors[code] = count
    counts.error_examples = {
        code: ErrorExample(first_row + example.index, example.id, example.error_message)
        for code, example in examples.items()
        if code in counts.errors
    }
    return counts


def _results(segment: bytes, run_id: bytes, number: int) -> Iterator[tuple[int, Result | None]]:
    """Row index and, where it is one, the error of each result of the run in ``segment``."""
    scan = scan_segment(segment, run_id, number)
    if scan is None:
        return
    for row, offset in zip(scan.rows, scan.offsets, strict=True):
        end = frame_end(segment, offset)
        if holds_answer(segment, offset, end):
            yield row, None
        else:
            yield row, decode_result(row, segment[offset + FRAME_BYTES : end])
