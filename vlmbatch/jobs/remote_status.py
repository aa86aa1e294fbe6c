"""What a run whose output has a URL has done: here, while it is made, or as it was put."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from vlmbatch.config import RemoteDestination
from vlmbatch.durable.lock import lock_holder
from vlmbatch.jobs.parts_status import PartsStatus, read_parts_status
from vlmbatch.jobs.status import RunStatus, read_status
from vlmbatch.output.remote.staging import LOCK_FILE, local_run, read_state


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
        with fetched() as output:
            found = read_parts_status(output)
            if found is None:
                # Its files are as old as the fetch.
                return replace(read_status(output), output=remote.url, updated=None)
            parts = (part and replace(part, output=_url_of(part, remote)) for part in found.parts)
            return replace(found, output=remote.url, parts=tuple(parts))
    status = read_status(remote.local.path)
    holder = status.holder or lock_holder(remote.folder / LOCK_FILE)
    return replace(status, output=remote.url, unput=status.is_complete, holder=holder)


def _url_of(part: RunStatus, remote: RemoteDestination) -> str:
    return f"{remote.url.rstrip('/')}/{Path(part.output).name}"
