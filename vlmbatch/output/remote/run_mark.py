"""A run on a cluster that is putting parts: a small object beside them, put again while it lasts.

A store has no locks that end with a process. What was not put again for a while is of a run that
has ended without taking leave.

    bucket/out/_vlmbatch/ray-run-<id>.json
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from vlmbatch.durable.run_paths import INSIDE
from vlmbatch.log import logger
from vlmbatch.remote.errors import RemoteError
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.puts import replace_object
from vlmbatch.remote.versions import names_in, read_object, remove_object

_PREFIX = "ray-run-"
_PERIOD_SECONDS = 15.0
_END_SECONDS = 5.0  # for one that is being put
_LOST_SECONDS = 60.0  # more than a put takes, and clocks differ


@dataclass(frozen=True, slots=True)
class RunMark:
    """What a run says of itself. ``rows_done``: also of parts that are yet to be put."""

    pid: int
    host: str
    started: str  # ISO 8601, UTC
    command: str
    parts: int
    rows_total: int
    rows_done: int
    updated: float  # Unix time, in seconds

    def __str__(self) -> str:
        ago = f"heard of {max(0, self.seconds):.0f} s ago"
        return f"process {self.pid} on {self.host}, since {self.started}, {ago}"

    @property
    def seconds(self) -> float:
        """Since it was put, as far as clocks agree."""
        return time.time() - self.updated

    @property
    def is_lost(self) -> bool:
        return self.seconds > _LOST_SECONDS


def running_marks(folder: RemotePath) -> list[RunMark]:
    """Of the runs that put parts into ``folder`` now.

    Raises:
        RemoteError: the store cannot be asked.
    """
    return [mark for mark in _marks(folder).values() if mark is not None and not mark.is_lost]


@contextmanager
def marked(folder: RemotePath, mark: Callable[[], RunMark]) -> Iterator[None]:
    """Within, ``mark`` is put again and again. What lost runs have left is removed.

    Raises:
        RemoteError: the store refuses the first one.
    """
    for name, other in _marks(folder).items():
        if other is None or other.is_lost:
            remove_object(folder.child(f"{INSIDE}/{name}"))
    path = folder.child(f"{INSIDE}/{_PREFIX}{secrets.token_hex(4)}.json")
    ended = threading.Event()

    def put() -> None:
        replace_object(json.dumps(asdict(mark())).encode(), path)

    def put_on() -> None:
        while not ended.wait(_PERIOD_SECONDS):
            try:
                put()
            except (RemoteError, OSError) as error:  # the next may arrive
                logger.debug("%s", error)

    put()
    thread = threading.Thread(target=put_on, name="run-mark", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_END_SECONDS)
        with suppress(RemoteError):
            remove_object(path)


def _marks(folder: RemotePath) -> dict[str, RunMark | None]:
    """By name; None for what is damaged, or gone by now."""
    inside = folder.child(INSIDE)
    names = [name for name in names_in(inside) if name.startswith(_PREFIX)]
    return {name: _parsed(read_object(inside.child(name))) for name in names}


def _parsed(raw: bytes | None) -> RunMark | None:
    try:
        return RunMark(**json.loads(raw or b""))
    except (ValueError, TypeError):
        return None
