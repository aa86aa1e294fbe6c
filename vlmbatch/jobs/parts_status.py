"""What the tasks of a sharded run have done, read from their folder without disturbing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlmbatch.config import Part
from vlmbatch.errors import UsageError
from vlmbatch.jobs.status import RunStatus, read_status
from vlmbatch.output.all_parts import numbers_text, several_counts
from vlmbatch.output.parts import parts_named
from vlmbatch.output.remote.run_mark import RunMark

_SAME_COMMAND = "run the same command again to resume"


@dataclass(frozen=True, slots=True)
class PartsStatus:
    """The parts of the run in ``output``, by number; None is one of which nothing is there.

    ``runs``: those on clusters that put parts into it now, where it is in a store.
    """

    output: Path | str
    parts: tuple[RunStatus | None, ...]
    runs: tuple[RunMark, ...] = ()

    @property
    def known(self) -> Iterator[RunStatus]:
        """The parts of which something is there."""
        return filter(None, self.parts)

    @property
    def done(self) -> list[int]:
        """The parts whose rows are all done."""
        return self._where("complete")

    @property
    def running(self) -> list[int]:
        """Those that a process is writing."""
        return self._where("running", "starting")

    @property
    def interrupted(self) -> list[int]:
        """Those that were begun, and that no process is writing."""
        return self._where("interrupted")

    @property
    def missing(self) -> list[int]:
        """Those of which nothing is there, or not what was written."""
        others = [*self.done, *self.running, *self.interrupted]
        return sorted({*range(len(self.parts))}.difference(others))

    @property
    def rows_total(self) -> int | None:
        """Rows of the manifest; None while no part has read it."""
        rows = [part.manifest_rows for part in self.known]
        rows += [run.rows_total for run in self.runs]
        return next((number for number in rows if number is not None), None)

    @property
    def rows_done(self) -> int:
        return sum(part.rows_done for part in self.known)

    @property
    def rows_left(self) -> int | None:
        return None if self.rows_total is None else self.rows_total - self.rows_done

    @property
    def errors(self) -> dict[str, int]:
        """Rows by error code, the most frequent first."""
        counts: Counter[str] = Counter()
        for part in self.known:
            counts.update(part.errors)
        return dict(counts.most_common())

    @property
    def error_examples(self) -> dict[str, str]:
        """The first of each code."""
        found: dict[str, str] = {}
        for part in self.known:
            found = {**part.error_examples, **found}
        return {code: found[code] for code in self.errors}

    @property
    def num_errors(self) -> int:
        return sum(self.errors.values())

    @property
    def is_running(self) -> bool:
        return bool(self.running or self.runs)

    @property
    def is_complete(self) -> bool:
        return len(self.done) == len(self.parts) and not self.is_of_several_runs

    @property
    def is_of_several_runs(self) -> bool:
        """Whether the parts' records have other manifests or settings than each other."""
        settings = [part.settings for part in self.known if part.started is not None]
        return any(each != settings[0] for each in settings[1:])

    @property
    def next_step(self) -> str:
        """What the user may do now."""
        left = sorted([*self.interrupted, *self.missing])
        on_ray = any(" --ray" in (part.command or "") for part in self.known)
        if left and (on_ray or self.runs):
            return "wait until the run ends" if self.is_running else _SAME_COMMAND
        if left:
            tasks = "task of part" if len(left) == 1 else "tasks of parts"
            waits = ", and wait for those that are running" if self.running else ""
            return f"run the {tasks} {numbers_text(left)} again{waits}"
        if self.running:
            return "wait until the tasks end"
        if self.is_of_several_runs:
            return (
                "run all tasks again, with --incremental if the manifest alone has changed: the "
                "parts are of several runs"
            )
        rows = "row" if self.num_errors == 1 else "rows"
        run = "the same command" if on_ray else "all tasks"
        retry = f", or run {run} with --retry-failed to answer the {self.num_errors:,} error "
        merge = f"join the parts with `vlmbatch merge {self.output} -o FILE`"
        return f"{merge}{retry}{rows} again first" if self.num_errors else merge

    def _where(self, *states: str) -> list[int]:
        return [
            number
            for number, part in enumerate(self.parts)
            if part is not None and part.state in states
        ]


def read_parts_status(folder: Path) -> PartsStatus | None:
    """The status of the parts in ``folder``; None where there are none.

    Raises:
        UsageError: parts of runs in several numbers of parts are there.
        OutputError: something that is there cannot be read.
    """
    named = parts_named(folder)
    if not named:
        return None
    counts = sorted({part.count for part in named})
    if len(counts) > 1:
        raise several_counts(folder, counts)
    there = {part.number for part in named}
    return PartsStatus(
        folder,
        tuple(
            _part_status(folder / Part(number, counts[0]).file_name) if number in there else None
            for number in range(counts[0])
        ),
    )


def _part_status(path: Path) -> RunStatus | None:
    try:
        return read_status(path)
    except UsageError:
        if path.exists():
            raise
        return None  # a work folder in which no run has begun
