"""Named commit points at which a test can kill the process: a test hook, off unless asked for.

``VLMBATCH_CRASH_AT=journal.written`` sends SIGKILL to the process when it reaches the point of
that name; ``journal.written:3`` when it does so for the third time.
"""

from __future__ import annotations

import os
import signal

CRASH_POINTS = (
    "run_record.synced",  # run.json: the temporary file is durable
    "run_record.renamed",  # it has its name
    "run_record.published",  # and will keep it
    "journal.segment_created",
    "journal.written",  # a group of rows, not yet durable
    "journal.synced",
    "journal.acknowledged",
    "journal.tail_cut",  # recovery removed a torn tail
    "journal.segment_deleted",
    "output.synced",  # the same for the Parquet file
    "output.renamed",
    "output.published",
)
REMOTE_CRASH_POINTS = (  # of outputs with a URL alone
    "remote.claimed",  # the folder is this run's
    "remote.object_put",
    "remote.put",  # all of it, which is not yet noted here
)


def armed_points(setting: str) -> dict[str, int]:
    """``name`` or ``name:count`` as the visits left until the process dies; empty for nothing.

    Raises:
        ValueError: there is no such point.
    """
    if not setting:
        return {}
    name, _, count = setting.partition(":")
    points = (*CRASH_POINTS, *REMOTE_CRASH_POINTS)
    if name not in points:
        raise ValueError(f"VLMBATCH_CRASH_AT={setting}: the points are {', '.join(points)}")
    return {name: int(count or 1)}


_armed = armed_points(os.environ.get("VLMBATCH_CRASH_AT", ""))


def crash_point(name: str) -> None:
    """Die here if the environment says so."""
    if name not in _armed:
        return
    _armed[name] -= 1
    if _armed[name] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
