"""The folder into which all nodes write parts: what is there, and whether a node sees it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from vlmbatch.config import JobConfig, Part, PartDestination
from vlmbatch.durable.durable_file import reported
from vlmbatch.durable.lock import OutputLock
from vlmbatch.durable.run_paths import LOCK_FILE, RECORD_FILE, parts_work_folder, work_folder_path
from vlmbatch.durable.run_record import read_record
from vlmbatch.errors import OutputError, UsageError
from vlmbatch.output.all_parts import all_parts
from vlmbatch.output.changes import refuse_changes
from vlmbatch.output.finished import finished_counts
from vlmbatch.output.parts import check_folder, finished_part, other_run, parts_named
from vlmbatch.output.reader import OutputCounts
from vlmbatch.stats import RunStats

_PROBE = "probe-"  # begins the name of a file that shows a node that it sees the folder
_SEEN_SECONDS = 10.0  # within which a network file system shows a new file to other machines


@dataclass(frozen=True, slots=True)
class Probe:
    """What the driver has put into the folder, and all nodes have to see there."""

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class PartTask:
    """A part, and which ``rows`` of the manifest it has, in a run with that fingerprint."""

    part: Part
    rows: range
    manifest_rows: int
    fingerprint: str


Answer = Callable[[JobConfig, RunStats], None]  # writes the output of a job on this machine


class PartsFolder(Protocol):
    """It is known to driver and nodes, and pickled on its way to these; its text is its name.

    Raises:
        OutputError, RemoteError: by every method, when file system or store refuses.
    """

    def named(self) -> list[Part]:
        """The parts, of whatever runs, that are there or were begun."""
        ...

    def check(self, part: Part) -> None:
        """Refuse a folder of a run in another number of parts than ``part`` is of, or in none.

        Raises:
            UsageError: the message names what is there.
        """
        ...

    def refuse_changes(self, part: Part, settings: dict[str, Any], *, incremental: bool) -> None:
        """Refuse a run with other ``settings`` than the parts there; ``part`` may be any.

        Raises:
            UsageError: names what differs.
        """
        ...

    def held(self, num_parts: int, stats: RunStats) -> AbstractContextManager[Probe]:
        """Within, the run may have the folder divided; it may tell others how far it is.

        Raises:
            OutputLockedError: another one does, and the folder can tell.
        """
        ...

    def see(self, probe: Probe) -> None:
        """Look for the driver's probe, from a node.

        Raises:
            UsageError: it is not there, or may not be written beside.
        """
        ...

    def finished(self, fingerprint: str, rows: Mapping[Part, range]) -> dict[Part, OutputCounts]:
        """The parts that are done for these rows of the manifest, and what they hold."""
        ...

    def run_of(self, part: Part) -> str | None:
        """The run that a part is of by now; None where none is known."""
        ...

    def write(self, task: PartTask, config: JobConfig, stats: RunStats, answer: Answer) -> bool:
        """Have ``answer`` write a part, from a node; whether another run's was taken instead.

        Raises:
            OutputLockedError: something else writes it.
        """
        ...

    def check_whole(self) -> None:
        """Check that all parts are there, and of one run.

        Raises:
            UsageError, UnfinishedError: they are not.
        """
        ...


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """A folder on a network file system, under the same path on all nodes."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def named(self) -> list[Part]:
        return parts_named(self.path)

    def check(self, part: Part) -> None:
        check_folder(self.path, part)

    def refuse_changes(self, part: Part, settings: dict[str, Any], *, incremental: bool) -> None:
        other, changes = other_run(self.path, part, settings)
        refuse_changes(self.path / other.file_name, changes, incremental=incremental)

    @contextmanager
    def held(self, num_parts: int, stats: RunStats) -> Iterator[Probe]:
        inside = parts_work_folder(self.path)
        with reported(inside):
            inside.mkdir(parents=True, exist_ok=True)
        lock = OutputLock(inside / LOCK_FILE, self.path)
        # Never the same name: what a network file system has shown of it once stays for a while.
        probe = Probe(f"{_PROBE}{secrets.token_hex(8)}", secrets.token_hex(16))
        path = inside / probe.name
        try:
            with reported(path):
                for stale in inside.glob(f"{_PROBE}*"):  # of a driver that was killed
                    stale.unlink(missing_ok=True)
                path.write_text(probe.content)
            yield probe
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            lock.release()

    def see(self, probe: Probe) -> None:
        path = parts_work_folder(self.path) / probe.name
        deadline = time.monotonic() + _SEEN_SECONDS
        while True:
            try:
                if path.read_text() == probe.content:
                    return
                seen = "has another content there"
            except OSError as error:
                seen = f"is not seen there ({error.strerror})"
            if time.monotonic() > deadline:
                raise UsageError(
                    f"output {self.path} is not the folder that the driver writes to: the file "
                    f"{path.name} that it has put there {seen}. All nodes have to mount the output "
                    "folder under the same path"
                )
            time.sleep(0.2)

    def finished(self, fingerprint: str, rows: Mapping[Part, range]) -> dict[Part, OutputCounts]:
        found = {part: finished_part(self.path, part, fingerprint, rows[part]) for part in rows}
        return {part: finished_counts(file.path) for part, file in found.items() if file}

    def run_of(self, part: Part) -> str | None:
        try:
            record = read_record(work_folder_path(self.path / part.file_name) / RECORD_FILE)
        except OutputError:
            return None  # damaged, which --overwrite mends
        return None if record is None else record.id

    def write(self, task: PartTask, config: JobConfig, stats: RunStats, answer: Answer) -> bool:
        answer(replace(config, destination=PartDestination(self.path, task.part)), stats)
        return False

    def check_whole(self) -> None:
        all_parts(self.path)
