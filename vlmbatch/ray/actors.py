"""Workers as Ray's actors, and the calls to them that have yet to return."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vlmbatch.config import Part
from vlmbatch.ray.cluster import Share
from vlmbatch.ray.worker import PartWorker, WorkerJob
from vlmbatch.stats import RunStats

_RAISED = re.compile(r"[\w.]*(?:Error|Exception)\b")  # begins the last line of a traceback


@dataclass(slots=True, eq=False)
class Worker:
    """One of the run's engines, or one that waits for its place."""

    actor: Any
    node: str = "?"
    part: Part | None = None  # that it is answering
    stats: RunStats | None = None  # of that part, as it was told last
    is_ready: bool = False


@dataclass(frozen=True, slots=True)
class Returned:
    """What a call to a worker has returned, or how it has failed."""

    worker: Worker
    method: str
    value: Any = None
    failure: Exception | None = None

    @property
    def cause(self) -> str:
        """Why it has failed, in a line: Ray's message, or the error whose traceback it holds."""
        error = getattr(self.failure, "cause", None) or self.failure
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raised = [line for line in lines[1:] if _RAISED.match(line)]
        return raised[-1] if raised else lines[0]


class Actors:
    """The workers of a run. Ray starts each where its share is free, and again when it dies."""

    def __init__(self, ray: Any, job: WorkerJob, share: Share) -> None:
        self._ray = ray
        self._job = job
        self._class = ray.remote(
            num_gpus=share.num_gpus,
            num_cpus=share.num_cpus,
            max_restarts=-1,
            concurrency_groups={"answer": 1},  # a thread of its own, the same for all parts
        )(PartWorker)
        self._calls: dict[Any, tuple[Worker, str]] = {}  # by Ray's reference of the result

    def start(self) -> Worker:
        """A worker that is being opened, once Ray has a place for it."""
        worker = Worker(self._class.remote(self._job))
        self.open(worker)
        return worker

    def open(self, worker: Worker) -> None:
        """Open it, also where Ray has yet to start it or to start it anew."""
        worker.is_ready = False
        self.call(worker, "open", max_task_retries=-1)

    def call(self, worker: Worker, method: str, *arguments: Any, **options: Any) -> None:
        """Call a method, whose result comes from ``returned``."""
        bound = getattr(worker.actor, method).options(**options)
        self._calls[bound.remote(*arguments)] = (worker, method)

    def ask_progress(self, worker: Worker) -> None:
        """Call ``progress``, unless it was called and has not returned."""
        if (worker, "progress") not in self._calls.values():
            self.call(worker, "progress")

    def returned(self, seconds: float) -> Iterator[Returned]:
        """What has returned; waits so long for anything but progress."""
        others = [ref for ref, (_, method) in self._calls.items() if method != "progress"]
        if others:
            self._ray.wait(others, timeout=seconds)
        else:
            time.sleep(seconds)
        references = list(self._calls)
        if not references:
            return
        ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        for reference in ready:
            worker, method = self._calls.pop(reference)
            try:
                value = self._ray.get(reference)
            except self._ray.exceptions.RayError as failure:
                yield Returned(worker, method, failure=failure)
            else:
                yield Returned(worker, method, value)

    def recover(self, returned: Returned) -> None:
        """Open a worker again whose call has failed.

        Ray has started it anew if it died; where our own code failed, as with a CUDA error, its
        process is of no use any more.
        """
        if isinstance(returned.failure, self._ray.exceptions.RayTaskError):
            self._ray.kill(returned.worker.actor, no_restart=False)
        self.open(returned.worker)
