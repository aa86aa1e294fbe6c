"""Starts the command line again and again without its imports: forks, with an engine of its own.

    python fast_server.py SOCKET [--real]     requests and replies: one JSON object a line

It forks for each connection, and such a fork for each command. It ends when nobody has the pipe
``alive``, which is beside the socket, open to write.

A command is the whole of ``vlmbatch ARGUMENTS`` to its last exit handler, except for the engine and
for what its ``Surroundings`` ask for. With ``--real`` nothing is replaced: the engine is the real
one, and torch is imported once for all.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import fake_job
import in_process  # noqa: F401 - the commands, once for all
import process_engines
import pyarrow.compute  # what a run may import, once for all
import pyarrow.parquet  # noqa: F401
from failing_files import FaultyFiles, UnsyncedFiles, WriteBehindFiles
from fake_engine import FakeEngine

import vlmbatch.commands.run
import vlmbatch.display.progress
import vlmbatch.display.summary
import vlmbatch.images.loading.worker
import vlmbatch.jobs.row_feed
import vlmbatch.jobs.run
import vlmbatch.models.chat
import vlmbatch.models.llava.processor
import vlmbatch.session.engines
import vlmbatch.session.replica
import vlmbatch.stages.answer_loop
import vlmbatch.stages.sink
from vlmbatch import log
from vlmbatch.cli import main
from vlmbatch.durable import crash_points, durable_file, journal_writer
from vlmbatch.durable.spill import Spill
from vlmbatch.output import parquet_writer as writer
from vlmbatch.output import work_folder
from vlmbatch.replicas import pool
from vlmbatch.replicas.replica import Event, NewTokens
from vlmbatch.session.host_memory import HostMemory
from vlmbatch.session.load import start_images
from vlmbatch.types import Result

STATUS = Path("/proc/self/status")
Tell = Callable[[str, list[int]], None]
LATE = (  # what commands import when they come to it
    "dateutil.relativedelta",
    "rich._emoji_codes",
    "vlmbatch.jobs.status",
    "vlmbatch.jobs.validate",
    "vlmbatch.replicas.process",
)
REAL = (  # they import torch and transformers
    "llguidance",
    "vlmbatch.attention.torch_sdpa",
    "vlmbatch.bench.bench",
    "vlmbatch.engine.loading",
    "vlmbatch.jobs.features",
    "vlmbatch.models.llava.model",
    "vlmbatch.serve.server",
    "vlmbatch.hf.model",
    "vlmbatch.hf.processor",
    "transformers.generation.utils",
    "transformers.models.auto.processing_auto",
    "transformers.models.gemma3.modeling_gemma3",  # of which tests answer with transformers
)


@dataclass(frozen=True)
class Surroundings:
    """What a command meets. ``fault``: the arguments of ``FaultyFiles``."""

    step_seconds: float = 0.0
    decoder_seconds: float = 0.0  # before rows are read for the second time
    load_seconds: float = 0.0
    max_num_seqs: int = 32
    endless_from: int | None = None
    group_rows: int | None = None  # of the journal
    row_group_rows: int | None = None  # of the output
    write_behind: bool = False  # what was not synced dies with the process
    fault: tuple[int, int | None, str | None] | None = None
    user: int | None = None
    job: str | None = None  # of ``fake_job``, in place of the whole run
    spilling: bool = False  # nearly all that waits does so on the disk
    mutation: str | None = None  # a mistake in the journal: "acknowledge first" or "no fsync"


def event_log(path: str) -> Tell:
    """Appends ``kind 1 2 3`` to a file, at once, so that it survives the process."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def tell(kind: str, numbers: list[int]) -> None:
        os.write(descriptor, " ".join([kind, *map(str, numbers)]).encode() + b"\n")

    return tell


class ToldJournal(journal_writer.JournalWriter):
    """Tells which rows it has acknowledged, once it has."""

    tell: Tell
    mutation: str | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pending: list[int] = []

    def _open_segment(self) -> None:
        super()._open_segment()
        if self.mutation == "no fsync" and self._segment is not None:
            vars(self._segment)["sync"] = lambda: None

    def append(self, result: Result) -> None:
        self._pending.append(result.index)
        super().append(result)

    def sync(self) -> None:
        if self.mutation == "acknowledge first" and self._segment and self._group_rows:
            self._segment.write(self._group)
            self._group.clear()
            self._group_rows = 0
        else:
            super().sync()
        if self._pending:
            ToldJournal.tell("acknowledged", self._pending)
            self._pending.clear()


class ToldPool(pool.ReplicaPool):
    """Tells which rows its engines have ended."""

    tell: Tell

    def poll(self) -> list[Event]:
        events = super().poll()
        if ended := [event.index for event in events if not isinstance(event, NewTokens)]:
            ToldPool.tell("computed", ended)
        return events


def surround(around: Surroundings, tell: Tell) -> None:
    """Put the surroundings in the place of the real ones."""

    def start_decoders(*arguments: Any) -> Any:
        tell("decoders", [])
        fake_job.sleep(around.decoder_seconds)
        return start_images(*arguments)

    def load_engine(config: object, inputs: object) -> FakeEngine:
        tell("loading", [])
        fake_job.sleep(around.load_seconds)
        computed = partial(tell, "computed")
        limits = around.max_num_seqs, around.step_seconds, around.endless_from
        engine = FakeEngine(computed, *limits)
        atexit.register(lambda: tell("microseconds", _microseconds(engine)))
        return engine

    memory_at_start = memory_in_use("VmRSS")
    atexit.register(lambda: tell("memory", [memory_at_start, memory_in_use("VmHWM")]))

    def start(*arguments: Any) -> None:
        tell("started", [])
        begin(*arguments)

    begin, vars(vlmbatch.commands.run)["_run"] = vlmbatch.commands.run._run, start
    vars(vlmbatch.jobs.run)["start_images"] = start_decoders
    vars(vlmbatch.session.replica)["load_engine"] = load_engine
    vars(vlmbatch.session.engines)["load_for_pool"] = partial(
        process_engines.of_a_run, around.max_num_seqs, around.step_seconds, around.endless_from
    )
    vars(pool)["ReplicaPool"] = ToldPool
    ToldPool.tell = tell
    ToldJournal.tell = tell
    ToldJournal.mutation = around.mutation
    vars(work_folder)["JournalWriter"] = ToldJournal
    if around.job is not None:
        fake_job.put_in_place(around.job)
    if around.spilling:
        memory = replace(HostMemory.divide(None), rows=0, results=0)
        for module in (vlmbatch.jobs.run, vlmbatch.jobs.row_feed):
            vars(module)["HostMemory"] = SimpleNamespace(divide=lambda total: memory)
            vars(module)["Spill"] = partial(Spill, loose=8, segment_bytes=2**14)
    if around.group_rows is not None:
        journal_writer._GROUP_ROWS = around.group_rows
    if around.row_group_rows is not None:
        writer._ROW_GROUP_ROWS = around.row_group_rows
    files: UnsyncedFiles = UnsyncedFiles()
    if around.write_behind:
        files = WriteBehindFiles()
    elif around.fault is not None:
        files = FaultyFiles(*around.fault)
    for name in vars(durable_file.FileSystem):
        if not name.startswith("_"):
            setattr(durable_file.FILES, name, getattr(files, name))


def memory_in_use(field: str) -> int:
    """Bytes that ``/proc/self/status`` tells of."""
    [line] = (each for each in STATUS.read_text().splitlines() if each.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _microseconds(engine: FakeEngine) -> list[int]:
    """Processor time of the engine, and of the whole process."""
    return [int(seconds * 1e6) for seconds in (engine.seconds, time.process_time())]


def connected(address: Path) -> socket.socket | None:
    """Fork for each connection; the connection in the child, None once nobody can connect."""
    alive = os.open(address.with_name("alive"), os.O_RDONLY)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen()
    print("listening", flush=True)
    poll = select.poll()
    poll.register(alive, 0)  # that there is no writer is told unasked
    poll.register(listener, select.POLLIN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for these forks
    while alive not in (ready := dict(poll.poll())):
        assert ready.keys() == {listener.fileno()}
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            os.close(alive)
            return connection
        connection.close()
    return None


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; the request in the child, None once there are no more."""
    stream = connection.makefile("rw")
    running: set[int] = set()
    for line in stream:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            running.remove(request["wait"])
            reply = os.waitstatus_to_exitcode(status)
        else:
            reply = os.fork()
            if reply == 0:
                os.close(connection.detach())
                return request
            running.add(reply)
        stream.write(json.dumps(reply) + "\n")
        stream.flush()
    for pid in running:  # of tests that have failed
        os.kill(pid, signal.SIGKILL)
    return None


def become(request: dict[str, Any]) -> int:
    """Run the command as its own process would."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        opened = os.open(request[name], flags)  # waits for the other end of a named pipe
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))  # as at a start
    crash_points._armed = crash_points.armed_points(os.environ.get("VLMBATCH_CRASH_AT", ""))
    sys.argv = ["vlmbatch", *request["arguments"]]
    if (wanted := request["surroundings"]) is not None:
        surround(around := Surroundings(**wanted), event_log(request["log"]))
        if around.user is not None:
            os.setuid(around.user)
    return main(request["arguments"])


def leave(status: int) -> NoReturn:
    """End as the interpreter does, but for freeing its memory, which takes it longer than all."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading._shutdown()  # type: ignore[attr-defined]  # CPython's own
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def leave_alone_what_is_imported() -> None:
    """At exit torch.library would take its operators down, one by one, in each command."""
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]  # CPython's own
        finalizer.atexit = False


def warm_up() -> None:
    """Have Typer import what it needs to read arguments."""
    with contextlib.redirect_stderr(io.StringIO()):
        assert main(["run", "-", "-m", "/none", "-o", "none.parquet"]) == 2
    log.console.cache_clear()


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # it is no child of the test process that is the first to want it
    warm_up()
    for module in (*LATE, *(REAL if "--real" in sys.argv else ())):
        import_module(module)
    gc.collect()
    gc.freeze()
    leave_alone_what_is_imported()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert len(threads) - threads.count("jemalloc_bg_thd") == 1, "a fork would lose a thread"
    connection = connected(Path(sys.argv[1]))
    if connection is not None and (command := serve(connection)) is not None:
        leave(become(command))
