"""Answers in the other parts of a folder: where a manifest grows, rows pass from part to part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vlmbatch.config import Part
from vlmbatch.durable.run_paths import work_folder_path
from vlmbatch.durable.run_record import RunRecord
from vlmbatch.output.carry_over import OutputResults
from vlmbatch.output.parts import parts_named, read_part

MAX_OTHERS = 256  # whose files are open at a time


@contextmanager
def results_of_others(
    folder: Path, part: Part, is_usable: Callable[[RunRecord], bool]
) -> Iterator[list[tuple[OutputResults, Path]]]:
    """The results of the finished parts that are nearest to ``part``, and the files of their rows'
    keys.

    Of those alone whose run ``is_usable``. Their tasks may replace them meanwhile: what is open
    stays as it was, and keys go with the part that they are of.

    Raises:
        UsageError: something else has changed a part.
        OutputError: a file cannot be read.
    """
    others = [other for other in parts_named(folder) if other != part]
    others.sort(key=lambda other: abs(other.number - part.number))
    with ExitStack() as resources:
        found = []
        for other in others[:MAX_OTHERS]:
            path = folder / other.file_name
            before = read_part(path)
            if before is None or not is_usable(before.record()):
                continue
            results = OutputResults(path, before.num_rows)
            resources.callback(results.close)
            now = read_part(path)
            if now is not None and now.run_id == before.run_id:
                found.append((results, work_folder_path(path) / f"keys-{before.run_id}"))
        yield found
