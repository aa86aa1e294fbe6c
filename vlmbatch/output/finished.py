"""What a finished output holds, of whichever kind it is."""

from __future__ import annotations

from pathlib import Path

from vlmbatch.output.carry_over import OutputResults
from vlmbatch.output.openai_lines import is_batch_output
from vlmbatch.output.openai_results import BatchResults, read_batch_counts
from vlmbatch.output.reader import OutputCounts, read_output_counts


def finished_results(output: Path, num_rows: int) -> OutputResults | BatchResults:
    """The results in a finished output, to be closed after use.

    Raises:
        UsageError: something else has changed it.
        OutputError: it cannot be read.
    """
    if is_batch_output(output):
        return BatchResults(output, num_rows)
    return OutputResults(output, num_rows)


def finished_counts(output: Path) -> OutputCounts:
    """The rows and errors of a finished output.

    Raises:
        UsageError: something else has changed it.
        OutputError: it cannot be read.
    """
    return read_batch_counts(output) if is_batch_output(output) else read_output_counts(output)
