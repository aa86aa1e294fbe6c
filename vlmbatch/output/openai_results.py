"""Reads OpenAI's batch output back: what of an earlier run's answers a new one keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vlmbatch.output.openai_lines import HEAD_BYTES, errors_path, line_head, parse_line
from vlmbatch.output.reader import OutputCounts, changed_output, unreadable_output
from vlmbatch.types import ErrorExample, Result, note_example

_ABSENT = -1


class BatchResults:
    """The answers in a finished output of ``num_rows`` rows: eight bytes of memory a row.

    Raises:
        UsageError: the two files do not hold the rows 0 to ``num_rows`` - 1 of one run, each once.
        OutputError: by every method, when a file cannot be read.
    """

    def __init__(self, output: Path, num_rows: int) -> None:
        self._output = output
        self._positions: NDArray[np.int64] = np.full(num_rows, _ABSENT, np.int64)
        num_found, run_ids = 0, set()
        for path in (output, errors_path(output)):
            for position, (run_id, row) in _heads(output, path):
                if row >= num_rows:
                    raise changed_output(output)
                num_found += 1
                run_ids.add(run_id)
                if path == output:
                    self._positions[row] = position
        if num_found != num_rows or len(run_ids) > 1:
            raise changed_output(output)
        try:
            self._file = output.open("rb")
        except OSError as error:
            raise unreadable_output(output, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def answered(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self._positions != _ABSENT
        return found

    def result(self, row_index: int) -> Result:
        try:
            self._file.seek(int(self._positions[row_index]))
            result = parse_line(self._file.readline())
        except OSError as error:
            raise unreadable_output(self._output, error) from error
        except ValueError as error:
            raise changed_output(self._output) from error
        if result.index != row_index or result.error_code is not None:
            raise changed_output(self._output)
        return result


def read_batch_counts(output: Path) -> OutputCounts:
    """Count the rows and errors of an output in bounded memory.

    Raises:
        UsageError: something else has changed the files.
        OutputError: a file cannot be read.
    """
    failed = errors_path(output)
    counts = OutputCounts(sum(1 for _ in _heads(output, output)))
    try:
        with failed.open("rb") as file:
            for raw in file:
                result = parse_line(raw)
                if result.error_code is None:
                    raise changed_output(output)
                counts.num_rows += 1
                counts.errors[result.error_code] += 1
                example = ErrorExample(result.index, result.id, result.error_message)
                note_example(counts.error_examples, result.error_code, example)
    except FileNotFoundError:
        pass  # there were no errors
    except OSError as error:
        raise unreadable_output(failed, error) from error
    except ValueError as error:
        raise changed_output(output) from error
    return counts


def _heads(output: Path, path: Path) -> Iterator[tuple[int, tuple[str, int]]]:
    """Yield where each line starts, with its run and row; none when there is no file of errors."""
    last, position = -1, 0
    try:
        with path.open("rb") as file:
            for raw in file:
                head = line_head(raw[:HEAD_BYTES])
                if head is None or head[1] <= last:
                    raise changed_output(output)
                last = head[1]
                yield position, head
                position += len(raw)
    except FileNotFoundError as error:
        if path == output:
            raise unreadable_output(path, error) from error
    except OSError as error:
        raise unreadable_output(path, error) from error
