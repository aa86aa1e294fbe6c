"""An engine process: ``python -m vlmbatch.replicas.worker_main SOCKET MEMORY PARENT``.

Two descriptors and the parent's process id. It loads an engine as the first message says, and
answers what the others ask for until its parent is gone. Where several processes divide a model,
the parent of the others is the first of them.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from functools import partial
from multiprocessing.connection import Connection

from vlmbatch.errors import VlmbatchError
from vlmbatch.images.shared_memory import MappedMemory
from vlmbatch.replicas.engine_side import EngineSide, LeadingSide
from vlmbatch.replicas.followers import Followers
from vlmbatch.replicas.messages import (
    Begun,
    ExpectNoMore,
    Failed,
    FromEngine,
    LogLine,
    Lost,
    Ready,
    Step,
    ToEngine,
)
from vlmbatch.replicas.process import Load, Settings

_PARENT_SECONDS = 0.2  # between looks at whether the parent is there
_MAX_STDERR_BYTES = 2**20  # of what libraries print
_BLAME_SECONDS = 1.0  # a rank that ends makes others fail, which know less of why

Inbox = queue.SimpleQueue[list[ToEngine] | None]


class ParentGoneError(Exception):
    """There is nobody to answer for."""


class Parent:
    """The other end of the connection. Thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def tell(self, message: FromEngine) -> None:
        """Send a message; the process ends where there is nobody to take it."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        try:
            with self._lock:
                self._connection.send_bytes(data)
        except OSError:
            os._exit(1)


class Forwarder(logging.Handler):
    """Has the parent log what is logged here."""

    def __init__(self, parent: Parent) -> None:
        super().__init__()
        self._parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        self._parent.tell(LogLine(record.levelno, self.format(record)))


def main() -> None:
    """Serve until the parent is gone."""
    # They reach a whole group of processes at once; ending a run is the parent's business.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.set_threshold(50_000, 20, 20)  # as on the command line
    descriptor, memory, parent_pid = map(int, sys.argv[1:])
    connection = Connection(descriptor)
    threading.Thread(target=_watch, args=(parent_pid,), daemon=True).start()
    parent = Parent(connection)
    try:
        _serve(parent, connection, MappedMemory(memory))
    except ParentGoneError:
        status = 0
    except BaseException as error:  # noqa: BLE001  whatever it is, the parent goes on without us
        parent.tell(Failed(_picklable(error), traceback.format_exc()))
        status = 1
    os._exit(status)  # what is loaded need not be taken apart


def _serve(parent: Parent, connection: Connection, memory: MappedMemory) -> None:
    """Raises ParentGoneError."""
    try:
        settings: Settings = pickle.loads(connection.recv_bytes())
    except EOFError as error:
        raise ParentGoneError from error
    _forward_log(parent, settings.log_levels)
    follows = settings.rank.index > 0
    inbox: Inbox = queue.SimpleQueue()
    # Messages are taken off the socket also during a step: the parent never waits for us.
    receive = threading.Thread(target=_receive, args=(connection, inbox, follows), daemon=True)
    receive.start()
    try:
        if follows:
            _follow(parent, inbox, memory, settings)
        else:
            _lead(parent, inbox, memory, settings)
    except (ParentGoneError, VlmbatchError):
        raise
    except Exception:
        if follows or settings.follower_variables:
            time.sleep(_BLAME_SECONDS)
        raise


def _lead(parent: Parent, inbox: Inbox, memory: MappedMemory, settings: Settings) -> None:
    """Load and run an engine, alone or with those that divide its model."""
    load: Load = pickle.loads(settings.load)

    def on_begin(indexes: list[int]) -> None:
        parent.tell(Begun(tuple(indexes)))

    if settings.follower_variables:
        followers = Followers(
            load, memory, settings.follower_variables, partial(_end_with_rank, parent)
        )
        replica, limits = load(on_begin, followers.rank)
        side: EngineSide = LeadingSide(replica, memory, followers)
    else:
        replica, limits = load(on_begin, settings.rank)
        side = EngineSide(replica, memory)
    parent.tell(Ready(limits))
    if (report := side.step()) is not None:
        parent.tell(report)
    while True:
        _obey(side, inbox, settings.gather_seconds)
        report = side.step()
        if report is not None:
            parent.tell(report)


def _follow(parent: Parent, inbox: Inbox, memory: MappedMemory, settings: Settings) -> None:
    """Load a part of a model, and run the steps that rank 0 runs."""
    load: Load = pickle.loads(settings.load)
    replica, _ = load(lambda indexes: None, settings.rank)
    side = EngineSide(replica, memory)
    while (batch := inbox.get()) is not None:
        for message in batch:
            if not isinstance(message, Step):
                side.obey(message)
                continue
            if message.report:
                parent.tell(side.report([]))
            side.step()


def _end_with_rank(parent: Parent, end: Failed | Lost) -> None:
    """End this process, as one that divides its model has."""
    parent.tell(end)
    os._exit(1)  # which ends the others


def _obey(side: EngineSide, inbox: Inbox, gather_seconds: float) -> None:
    """Take what has come; an idle engine waits for it, and for a moment for more of it."""
    was_idle = side.is_idle
    gather_until = None
    while True:
        if was_idle and gather_until is None:
            timeout = None
        else:
            timeout = max(0.0, (gather_until or 0.0) - time.monotonic())
        try:
            batch = inbox.get(timeout != 0.0, timeout)
        except queue.Empty:
            return
        if batch is None:
            raise ParentGoneError
        for message in batch:
            side.obey(message)
        if was_idle and gather_until is None:
            gather_until = time.monotonic() + gather_seconds
        if side.is_idle or side.fills_step or isinstance(batch[-1], ExpectNoMore):
            gather_until = 0.0


def _receive(connection: Connection, inbox: Inbox, follows: bool) -> None:
    try:
        while True:
            inbox.put(pickle.loads(connection.recv_bytes()))
    except (EOFError, OSError):
        if follows:
            os._exit(1)  # it may be in a step that rank 0 will never take part in
        inbox.put(None)


def _watch(parent: int) -> None:
    """End with the parent, also in the middle of a step, and whoever else holds the socket."""
    while os.getppid() == parent:
        if os.fstat(sys.stderr.fileno()).st_size > _MAX_STDERR_BYTES:
            os.ftruncate(sys.stderr.fileno(), 0)
        time.sleep(_PARENT_SECONDS)
    os._exit(1)


def _forward_log(parent: Parent, levels: tuple[int, int]) -> None:
    root_level, own_level = levels
    logging.root.addHandler(Forwarder(parent))
    logging.root.setLevel(root_level)
    logging.getLogger("vlmbatch").setLevel(own_level)
    logging.captureWarnings(True)


def _picklable(error: BaseException) -> BaseException:
    """The error, or one that says the same where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  classes of libraries do in it whatever they like
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
