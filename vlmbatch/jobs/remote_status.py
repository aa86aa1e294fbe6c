"""What a run whose output has a URL has done: here, while it is made, or as it was put."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from vlmbatch.config import FolderDestination, Part, RemoteDestination
from vlmbatch.durable.lock import lock_holder
from vlmbatch.jobs.parts_status import PartsStatus
from vlmbatch.jobs.status import RunStatus, read_status
from vlmbatch.output.all_parts import several_counts
from vlmbatch.output.remote.open import open_part_folder
from vlmbatch.output.remote.part_objects import parts_in
from vlmbatch.output.remote.run_mark import running_marks
from vlmbatch.output.remote.staging import LOCK_FILE, local_run, read_state
from vlmbatch.output.remote.stored_part import StoredPart, read_stored_parts


def read_remote_status(
    remote: RemoteDestination, fetched: Callable[[], AbstractContextManager[Path]]
) -> RunStatus | PartsStatus:
    """The status of the run that this machine has yet to put, or else of the output at its URL.

    Raises:
        UsageError: there is neither.
        RemoteError: the store cannot be asked.
        OutputError: something that is there cannot be read.
    """
    record = local_run(remote.local.path)
    if record is None or read_state(remote).put == record.id:
        if isinstance(remote.local, FolderDestination) and (parts := _parts_status(remote)):
            return parts
        with fetched() as output:
            # Its files are as old as the fetch.
            return replace(read_status(output), output=remote.url, updated=None)
    status = read_status(remote.local.path)
    holder = status.holder or lock_holder(remote.folder / LOCK_FILE)
    return replace(status, output=remote.url, unput=status.is_complete, holder=holder)


def _parts_status(remote: RemoteDestination) -> PartsStatus | None:
    """Of the parts that were put there; None where there are none. Nothing of them is fetched but
    what tells of errors."""
    folder = open_part_folder(remote)
    runs = running_marks(folder)
    counts = sorted({part.count for part in parts_in(folder)} or {run.parts for run in runs})
    if not counts:
        return None
    if len(counts) > 1:
        raise several_counts(remote.url, counts)
    parts = [Part(number, counts[0]) for number in range(counts[0])]
    found = read_stored_parts(folder, parts, _part_status)
    return PartsStatus(remote.url, tuple(found), tuple(runs))


def _part_status(stored: StoredPart | None) -> RunStatus | None:
    if stored is None:
        return None
    status = RunStatus.of_record(str(stored.file), "complete", stored.record(), stored.counts())
    return replace(status, manifest_rows=stored.file.info.manifest_rows)
