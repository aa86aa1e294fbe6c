"""Hands the parts of a run to the workers that Ray has placed, and again where one is lost.

Ray places a worker where its share is free, and starts it anew there or elsewhere when its process
or its node dies. A part is given to a worker that is ready, never to one that waits for a place:
what was lost passes to whoever is free, and no part waits for a machine.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from vlmbatch.config import Part, RunPolicy
from vlmbatch.errors import OutputLockedError, UsageError, VlmbatchError
from vlmbatch.log import logger
from vlmbatch.ray.actors import Actors, Returned, Worker
from vlmbatch.ray.cluster import Share
from vlmbatch.ray.troubles import MAX_LOSSES, Troubles
from vlmbatch.ray.worker import Opened, PartOutcome, WorkerJob
from vlmbatch.remote.errors import RemoteFailedError
from vlmbatch.stages.stopping import RunStoppedError, StopRequest
from vlmbatch.stats import ADDED_COUNTERS, RunStats

AnyError = TypeVar("AnyError", bound=VlmbatchError)

_TICK_SECONDS = 0.5
_COUNT_SECONDS = 5.0  # between two looks at which nodes there are
_MARGIN_SECONDS = 5.0  # beyond the time of grace: to journal, and to tell us


class Dispatch:
    """The parts that are left of a run, and the workers that answer them.

    ``count_room``: for how many workers there is room, looked at anew from time to time.
    ``finished``: figures of the parts that are done; ``stats`` shows these and those under way.
    """

    def __init__(
        self,
        ray: Any,
        job: WorkerJob,
        share: Share,
        parts: Iterable[Part],
        count_room: Callable[[], int],
        finished: RunStats,
        stats: RunStats,
        stop: StopRequest,
    ) -> None:
        self._actors = Actors(ray, job, share)
        self._job = job
        self._policy = replace(job.config.policy, deadline_s=None, max_error_rate=None)
        self._left = deque(parts)
        self._runs_before: dict[Part, str | None] = {}  # of the parts that were begun anew
        self._count_room = count_room
        self._room = share.count
        self._counted = time.monotonic()
        self._finished = finished
        self._stats = stats
        self._stop = stop
        self._workers: list[Worker] = []
        self._on_node: dict[str, set[Worker]] = {}  # those that were done with something there
        self._troubles = Troubles()
        self._failed_starts = 0

    def run(self) -> None:
        """Have all parts answered.

        Raises:
            UsageError: a node sees another folder, manifest or model.
            OutputLockedError: something else writes a part, and goes on doing so.
            OutputError: a part cannot be written, or the manifest not be read there.
            RemoteError: the store refuses, or fails again and again.
            EnginesLostError: a part was lost again and again.
            RunStoppedError: ``stop`` has ended the run; the workers have kept what was done.
        """
        while self._left or self._under_way:
            if self._stop.check(self._stats):
                self._end()
                raise self._stop.reason or AssertionError
            self._fill()
            self._take_in()

    @property
    def _under_way(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.part is not None]

    def _fill(self) -> None:
        """Start workers while there is room for them, and give parts to those that are ready."""
        if time.monotonic() - self._counted > _COUNT_SECONDS:
            self._counted = time.monotonic()
            room = self._count_room()
            if room < self._room:
                logger.warning(
                    "the Ray cluster has room for %d engines now, not %d", room, self._room
                )
            self._room = room
        wanted = min(self._room, len(self._left) + len(self._under_way))
        while len(self._workers) < wanted:
            self._workers.append(self._actors.start())
        for worker in self._workers:
            if worker.is_ready and worker.part is None and (part := self._next_part()) is not None:
                worker.part, worker.stats = part, None
                self._actors.call(
                    worker, "answer", part, self._policy_of(part), concurrency_group="answer"
                )

    def _next_part(self) -> Part | None:
        for index, part in enumerate(self._left):
            if self._troubles.may_begin(part):
                del self._left[index]
                return part
        return None

    def _policy_of(self, part: Part) -> RunPolicy:
        """--overwrite holds until a part has been begun anew: after that it is resumed."""
        if not self._policy.overwrite:
            return self._policy
        run = self._job.folder.run_of(part)
        is_begun = part in self._runs_before and self._runs_before[part] != run
        self._runs_before.setdefault(part, run)
        return replace(self._policy, overwrite=not is_begun)

    def _take_in(self) -> None:
        """Wait for a moment, and take in what workers have to say."""
        for worker in self._under_way:
            self._actors.ask_progress(worker)
        for returned in self._actors.returned(_TICK_SECONDS):
            if returned.method == "answer":
                self._answered(returned)
            elif returned.method == "open":
                self._opened(returned)
            elif returned.failure is None:  # else the failed answer tells
                part, stats = returned.value
                if part == returned.worker.part:
                    returned.worker.stats = stats
        self._show()

    def _opened(self, returned: Returned) -> None:
        worker = returned.worker
        if returned.failure is not None:
            self._workers.remove(worker)
            self._failed_starts += 1
            if self._failed_starts < MAX_LOSSES:
                return
            raise UsageError(
                f"no engine can be started on the Ray cluster: {returned.cause}. Is vlmbatch "
                "installed on every node?"
            )
        opened: Opened = returned.value
        worker.node, worker.is_ready = opened.node, opened.error is None
        self._failed_starts = 0
        if opened.error is not None:
            raise _on_node(opened.node, opened.error)

    def _answered(self, returned: Returned) -> None:
        worker = returned.worker
        part, seen = worker.part, worker.stats
        assert part is not None
        worker.part, worker.stats = None, None
        if returned.failure is not None:
            self._left.appendleft(part)
            rows_done = 0 if seen is None else seen.rows_done
            self._troubles.lost(part, rows_done, worker.node, returned.cause)
            logger.warning(
                "part %s was lost on node %s, and is given out again: %s",
                part,
                worker.node,
                returned.cause,
            )
            self._actors.recover(returned)
            return
        outcome: PartOutcome = returned.value
        error = outcome.error
        if outcome.taken:
            logger.warning(
                "part %s was put by another run meanwhile: its answers are taken, and those of "
                "node %s are dropped",
                part,
                worker.node,
            )
        if error is None:
            self._take_finished(worker, outcome.stats)
            self._troubles.over(part)
            return
        self._left.appendleft(part)
        if isinstance(error, OutputLockedError):
            self._troubles.locked(part, error)
        elif isinstance(error, RemoteFailedError):
            self._troubles.failed(part, _on_node(worker.node, error))
            logger.warning("part %s is tried again in a while: %s", part, error)
        elif isinstance(error, RunStoppedError):
            self._take_finished(worker, outcome.stats)  # what it has kept
        else:
            raise _on_node(worker.node, error)

    def _take_finished(self, worker: Worker, stats: RunStats) -> None:
        """Count what a worker is done with, also as its node's share."""
        self._finished.add(stats)
        self._on_node.setdefault(worker.node, set()).add(worker)
        share = self._stats.nodes.setdefault(worker.node, Counter())
        share["engines"] = len(self._on_node[worker.node])
        share["rows"] += stats.num_new
        share["prompt_tokens"] += stats.prompt_tokens
        share["completion_tokens"] += stats.completion_tokens

    def _end(self) -> None:
        """Have the workers end what they are at, as long as the time of grace allows."""
        reason = self._stop.reason
        assert reason is not None
        self._stop.announce(self._stats)
        for worker in self._under_way:
            worker.actor.stop.remote(str(reason), reason.exit_status)
        while self._under_way and not self._stop.out_of_grace:
            self._take_in()
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
        self._stats.quantization = total.quantization or self._stats.quantization
        if self._stop.reason is None:
            self._stats.stage = self._stage()

    def _stage(self) -> str:
        if self._stats.rows_begun > self._stats.rows_resumed:
            return "answering"
        if not any(worker.is_ready for worker in self._workers):
            return "waiting for the Ray cluster"
        return "loading the model"


def _on_node(node: str, error: AnyError) -> AnyError:
    """The same error, with the node in its message."""
    error.args = (f"node {node}: {error}",)
    return error
