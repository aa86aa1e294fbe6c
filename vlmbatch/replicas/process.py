"""An engine process as its parent holds it: started, sent messages, ended.

Nothing of it outlives its parent, and nobody waits for it: messages leave and come on threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Protocol

from vlmbatch.engine.rank import ALONE, Rank
from vlmbatch.errors import OutputError
from vlmbatch.log import logger
from vlmbatch.processes import beyond_standard, cause_of_death, error_file, search_path
from vlmbatch.replicas.member import News
from vlmbatch.replicas.messages import EngineLimits, FromEngine, Lost, ToEngine
from vlmbatch.replicas.replica import EngineReplica, OnBegin

_EXIT_SECONDS = 5.0  # a killed process that takes longer is stuck in the kernel

Load = Callable[[OnBegin, Rank], tuple[EngineReplica, EngineLimits]]


class HasDescriptor(Protocol):
    """Memory in a file that processes map."""

    @property
    def descriptor(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """The first message to an engine process.

    ``load``: makes the engine, pickled. ``gather_seconds``: what an idle engine waits for requests
    beside the first, so that its first step is a full one. ``log_levels``: of the root logger, and
    of our own. ``rank``: of the processes that divide a model; the first starts the others, each
    with ``follower_variables`` in its environment.
    """

    load: bytes
    gather_seconds: float
    log_levels: tuple[int, int]
    rank: Rank = ALONE
    follower_variables: tuple[Mapping[str, str], ...] = ()


class EngineProcess:
    """A ``Link``. All that comes from the process goes to ``news``, ``Lost`` last.

    ``variables``: of its environment, beside those of this process. ``memory``: what it maps. The
    rest: see ``Settings``.

    Raises:
        OutputError: the system lacks what a process takes.
    """

    def __init__(
        self,
        load: Load,
        memory: HasDescriptor,
        news: News,
        *,
        gather_seconds: float = 0.0,
        variables: Mapping[str, str] | None = None,
        rank: Rank = ALONE,
        follower_variables: tuple[Mapping[str, str], ...] = (),
    ) -> None:
        self._news = news
        levels = logging.root.level, logger.getEffectiveLevel()
        settings = Settings(pickle.dumps(load), gather_seconds, levels, rank, follower_variables)
        first = pickle.dumps(settings)
        environment = {**os.environ, **(variables or {}), "PYTHONPATH": search_path()}
        with contextlib.ExitStack() as held:
            try:
                self._launch(held, memory.descriptor, environment)
            except OSError as error:
                raise OutputError(f"an engine process cannot be started: {error}") from error
            self._descriptors = held.pop_all()
        self._outbox: queue.SimpleQueue[ToEngine | None] = queue.SimpleQueue()
        self._ended = False
        self._threads = [
            threading.Thread(target=self._send, args=(first,), name="to-engine", daemon=True),
            threading.Thread(target=self._receive, name="from-engine", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _launch(
        self, held: contextlib.ExitStack, memory: int, environment: Mapping[str, str]
    ) -> None:
        """Start the process; ``held`` closes what this side keeps open."""
        ours, theirs = socket.socketpair()
        self._connection = held.enter_context(Connection(ours.detach()))
        with theirs, contextlib.ExitStack() as passed:
            self._stderr = error_file("vlmbatch-engine-stderr")
            held.callback(os.close, self._stderr)
            descriptors = [beyond_standard(each, passed) for each in (theirs.fileno(), memory)]
            arguments = [*descriptors, os.getpid()]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "vlmbatch.replicas.worker_main", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=descriptors,
                env=environment,
                process_group=0,  # out of reach of the terminal's Ctrl-C and Ctrl-Z
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """See ``Link``."""
        self._outbox.put(message)

    def kill(self) -> None:
        """See ``Link``."""
        self._process.kill()

    def close(self) -> None:
        """See ``Link``. It may be called again."""
        if self._ended:
            return
        self._ended = True
        self.kill()
        self._wait()
        self._outbox.put(None)
        for thread in self._threads:
            thread.join(_EXIT_SECONDS)
        if not any(thread.is_alive() for thread in self._threads):
            self._descriptors.close()

    def _wait(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)

    def _send(self, first: bytes) -> None:
        """On a thread of its own: all that waits at once, as one piece."""
        with contextlib.suppress(OSError):  # the process has ended, which the other thread tells
            self._connection.send_bytes(first)
            while True:
                batch = [self._outbox.get()]
                while not self._outbox.empty():
                    batch.append(self._outbox.get())
                if None in batch:
                    return
                self._connection.send_bytes(pickle.dumps(batch, pickle.HIGHEST_PROTOCOL))

    def _receive(self) -> None:
        """On a thread of its own."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                message: FromEngine = pickle.loads(self._connection.recv_bytes())
                self._news.put((self, message))
        self._wait()
        self._news.put((self, Lost(cause_of_death(self._process.poll(), self._stderr))))
