"""Hands the parts of a run to the workers that Ray has placed, and again where one is lost.

Ray places a worker where its share is free, and starts it anew there or elsewhere when its process
or its node dies. A part is given to a worker that is ready, never to one that waits for a place:
what was lost passes to whoever is free, and no part waits for a machine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from vlmbatch.config import Part, RunPolicy
from vlmbatch.durable.run_paths import RECORD_FILE, work_folder_path
from vlmbatch.durable.run_record import read_record
from vlmbatch.errors import (
    OutputError,
    OutputLockedError,
    UnfinishedError,
    UsageError,
    VlmbatchError,
)
from vlmbatch.log import logger
from vlmbatch.ray.cluster import Share
from vlmbatch.ray.worker import Opened, PartOutcome, PartWorker, WorkerJob
from vlmbatch.stages.stopping import RunStoppedError, StopRequest
from vlmbatch.stats import ADDED_COUNTERS, RunStats

_TICK_SECONDS = 0.5
_COUNT_SECONDS = 5.0  # between two looks at which nodes there are
_LOCK_SECONDS = 60.0  # for a part that something else writes
_RETRY_SECONDS = 1.0
_MAX_LOSSES = 3  # of one part, or starts of one worker, without a row done between them
_MARGIN_SECONDS = 5.0  # beyond the time of grace: to journal, and to tell us


@dataclass(slots=True, eq=False)
class _Worker:
    actor: Any
    node: str = "?"
    part: Part | None = None  # that it is answering
    stats: RunStats | None = None  # of that part, as it was told last
    is_ready: bool = False


@dataclass(slots=True)
class _Trouble:
    """What has happened to a part that is not done yet."""

    losses: int = 0  # since its journal has grown
    rows_done: int = 0
    locked_since: float | None = None
    not_before: float = 0.0


class Dispatch:
    """The parts that are left of a run, and the workers that answer them.

    ``count_share``: what is asked for a worker, and for how many there is room, looked at anew from
    time to time. ``finished``: figures of the parts that are done; ``stats`` shows these and those
    under way.
    """

    def __init__(
        self,
        ray: Any,
        job: WorkerJob,
        parts: Iterable[Part],
        count_share: Callable[[], Share],
        finished: RunStats,
        stats: RunStats,
        stop: StopRequest,
    ) -> None:
        self._ray = ray
        self._job = job
        self._policy = replace(job.config.policy, deadline_s=None, max_error_rate=None)
        self._left = deque(parts)
        self._run_ids = (
            {part: self._run_id(part) for part in self._left} if (self._policy.overwrite) else {}
        )
        self._count_share = count_share
        self._share = count_share()
        self._counted = time.monotonic()
        self._finished = finished
        self._stats = stats
        self._stop = stop
        self._workers: list[_Worker] = []
        self._calls: dict[Any, tuple[_Worker, str]] = {}  # by the reference of what it returns
        self._trouble: dict[Part, _Trouble] = {}
        self._failed_starts = 0

    def run(self) -> None:
        """Have all parts answered.

        Raises:
            UsageError: a node sees another folder, manifest or model.
            OutputLockedError: something else writes a part, and goes on doing so.
            OutputError: a part cannot be written, or the manifest not be read there.
            UnfinishedError: a part was lost again and again.
            RunStoppedError: ``stop`` has ended the run; the workers have kept what was done.
        """
        announced = False
        while self._left or self._under_way:
            if self._stop.check(self._stats):
                if not announced:
                    announced = True
                    self._end_workers(self._stop)
                if not self._under_way or self._stop.out_of_grace:
                    self._drain()
                    break
            else:
                self._fill()
            self._take_in()
        self._show()
        if self._stop.reason is not None and (self._left or self._under_way):
            raise self._stop.reason

    @property
    def _under_way(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.part is not None]

    def _fill(self) -> None:
        """Give parts to those that are ready, and start workers while there is room for them."""
        if time.monotonic() - self._counted > _COUNT_SECONDS:
            self._counted = time.monotonic()
            count = self._count_share().count
            if count < self._share.count:
                logger.warning(
                    "the Ray cluster has room for %d engines now, not %d", count, self._share.count
                )
            self._share = replace(self._share, count=count)
        wanted = min(self._share.count, len(self._left) + len(self._under_way))
        while len(self._workers) < wanted:
            self._start()
        for worker in self._workers:
            if worker.is_ready and worker.part is None and (part := self._next_part()) is not None:
                worker.part, worker.stats = part, None
                policy = self._policy_of(part)
                self._call(worker, "answer", part, policy, concurrency_group="answer")

    def _next_part(self) -> Part | None:
        now = time.monotonic()
        for index, part in enumerate(self._left):
            trouble = self._trouble.get(part)
            if trouble is None or trouble.not_before <= now:
                del self._left[index]
                return part
        return None

    def _policy_of(self, part: Part) -> RunPolicy:
        """--overwrite holds for the first time alone that a part is begun anew."""
        if not self._policy.overwrite or self._run_id(part) == self._run_ids[part]:
            return self._policy
        return replace(self._policy, overwrite=False)

    def _run_id(self, part: Part) -> str | None:
        path = self._job.folder / part.file_name
        try:
            record = read_record(work_folder_path(path) / RECORD_FILE)
        except OutputError:
            return None  # damaged, which --overwrite mends
        return None if record is None else record.id

    def _start(self) -> None:
        as_actor = self._ray.remote(
            num_gpus=self._share.num_gpus,
            num_cpus=self._share.num_cpus,
            max_restarts=-1,
            concurrency_groups={"answer": 1},  # a thread of its own, the same for all parts
        )
        worker = _Worker(as_actor(PartWorker).remote(self._job))
        self._workers.append(worker)
        self._open(worker)

    def _open(self, worker: _Worker) -> None:
        worker.is_ready = False
        self._call(worker, "open", max_task_retries=-1)  # until Ray has a place for it

    def _call(self, worker: _Worker, name: str, *arguments: Any, **options: Any) -> None:
        method = getattr(worker.actor, name)
        reference = method.options(**options).remote(*arguments)
        self._calls[reference] = (worker, name)

    def _take_in(self) -> None:
        """Wait for a moment, and take in what workers have to say."""
        asked = {id(worker) for worker, name in self._calls.values() if name == "progress"}
        for worker in self._under_way:
            if id(worker) not in asked:
                self._call(worker, "progress")
        pending = [ref for ref, (_, name) in self._calls.items() if name != "progress"]
        ready, _ = self._ray.wait(pending, timeout=_TICK_SECONDS) if pending else ([], [])
        if not pending:
            time.sleep(_TICK_SECONDS)
        told, _ = (
            self._ray.wait(refs, num_returns=len(refs), timeout=0)
            if (refs := [ref for ref in self._calls if ref not in pending])
            else ([], [])
        )
        for reference in [*told, *ready]:
            worker, name = self._calls.pop(reference)
            self._take(worker, name, reference)
        self._show()

    def _take(self, worker: _Worker, name: str, reference: Any) -> None:
        try:
            value = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            if name == "answer":
                self._lost(worker, error)
            elif name == "open":
                self._cannot_start(worker, error)
            return
        if name == "progress":
            if worker.part is not None:
                worker.stats = value
        elif name == "open":
            self._opened(worker, value)
        elif name == "answer":
            self._answered(worker, value)

    def _opened(self, worker: _Worker, opened: Opened) -> None:
        worker.node, worker.is_ready = opened.node, opened.error is None
        if opened.error is not None:
            kind = UsageError if isinstance(opened.error, UsageError) else OutputError
            raise kind(f"node {opened.node}: {opened.error}")
        self._failed_starts = 0
        logger.debug("node %s is ready", opened.node)

    def _answered(self, worker: _Worker, outcome: PartOutcome) -> None:
        part, worker.part, worker.stats = worker.part, None, None
        assert part is not None
        error = outcome.error
        if error is None:
            self._finished.add(outcome.stats)
            self._trouble.pop(part, None)
            return
        self._left.appendleft(part)
        if isinstance(error, OutputLockedError):
            self._wait_for_lock(part, error)
        elif isinstance(error, RunStoppedError):
            self._finished.add(outcome.stats)  # what it has kept
        else:
            raise _with_node(error, worker.node)

    def _wait_for_lock(self, part: Part, error: VlmbatchError) -> None:
        """A worker of ours may be given up and still write, as may one of a driver that is gone."""
        trouble = self._trouble.setdefault(part, _Trouble())
        now = time.monotonic()
        trouble.locked_since = trouble.locked_since or now
        trouble.not_before = now + _RETRY_SECONDS
        if not trouble.losses and now - trouble.locked_since > _LOCK_SECONDS:
            raise error

    def _lost(self, worker: _Worker, error: Exception) -> None:
        """The process, its node or the way to it is gone; or it has failed, and must start anew."""
        part, seen = worker.part, worker.stats
        assert part is not None
        worker.part, worker.stats = None, None
        self._left.appendleft(part)
        trouble = self._trouble.setdefault(part, _Trouble())
        rows_done = seen.rows_done if seen is not None else 0
        trouble.losses = 1 if rows_done > trouble.rows_done else trouble.losses + 1
        trouble.rows_done = max(rows_done, trouble.rows_done)
        cause = _cause(error)
        if trouble.losses > _MAX_LOSSES:
            raise UnfinishedError(
                f"part {part} was lost {trouble.losses} times without a row done, last on node "
                f"{worker.node}: {cause}. What is done is kept: run the same command again to "
                "resume"
            )
        logger.warning(
            "part %s was lost on node %s, and is given out again: %s", part, worker.node, cause
        )
        if isinstance(error, self._ray.exceptions.RayTaskError):
            self._ray.kill(worker.actor, no_restart=False)
        self._open(worker)

    def _cannot_start(self, worker: _Worker, error: Exception) -> None:
        self._workers.remove(worker)
        self._failed_starts += 1
        if self._failed_starts >= _MAX_LOSSES:
            raise UsageError(
                f"no engine can be started on the Ray cluster: {_cause(error)}. vlmbatch has to be "
                "installed on every node"
            )

    def _end_workers(self, stop: StopRequest) -> None:
        assert stop.reason is not None
        stop.announce(self._stats)
        for worker in self._under_way:
            worker.actor.stop.remote(str(stop.reason), stop.reason.exit_status)

    def _drain(self) -> None:
        """Wait a little longer for those that are journaling what they have done."""
        deadline = time.monotonic() + _MARGIN_SECONDS
        while self._under_way and time.monotonic() < deadline:
            self._take_in()

    def _show(self) -> None:
        """Bring the run's figures up to date."""
        total = self._finished.copy()
        for worker in self._under_way:
            if worker.stats is not None:
                total.add(worker.stats)
        if self._stats.work_started is None and total.rows_begun:
            self._stats.work_started = time.monotonic()
        for name in ADDED_COUNTERS:
            setattr(self._stats, name, getattr(total, name))
        self._stats.error_examples = total.error_examples
        self._stats.quantization = total.quantization
        if self._stop.reason is None:
            self._stats.stage = self._stage()

    def _stage(self) -> str:
        if self._stats.rows_begun > self._stats.rows_resumed:
            return "answering"
        if not any(worker.is_ready for worker in self._workers):
            return "waiting for the Ray cluster"
        return "loading the model"


def _cause(error: Exception) -> str:
    lines = str(getattr(error, "cause", None) or error).strip().splitlines()
    return lines[-1 if "Traceback" in lines[0] else 0] if lines else type(error).__name__


def _with_node(error: VlmbatchError, node: str) -> VlmbatchError:
    """The same error, with the node in its message."""
    error.args = (f"node {node}: {error}",)
    return error
