"""What runs on a node of the cluster: one engine, which answers one part after another."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlmbatch import __version__
from vlmbatch.config import JobConfig, Part, RunPolicy
from vlmbatch.durable.run_record import RunRecord
from vlmbatch.errors import EnginesLostError, UsageError, VlmbatchError
from vlmbatch.images.loading.shared_loader import SharedLoader
from vlmbatch.images.shared_memory import SharedMemory
from vlmbatch.jobs.fingerprint import fingerprint, run_settings
from vlmbatch.jobs.run import answer_manifest, open_output, was_complete
from vlmbatch.output.changes import explained
from vlmbatch.ray.parts_folder import PartsFolder, PartTask, Probe
from vlmbatch.replicas.pool import ReplicaPool
from vlmbatch.session.engines import engine_places
from vlmbatch.session.load import composed, start_images
from vlmbatch.session.open import Inputs, open_job
from vlmbatch.session.replica import loaded_replica
from vlmbatch.stages.answer_loop import GATHER_SECONDS
from vlmbatch.stages.stopping import RunStoppedError, StopRequest
from vlmbatch.stats import RunStats

if TYPE_CHECKING:
    from vlmbatch.images.loading.loader import ImageLoader
    from vlmbatch.replicas.replica import Replica

_MAX_IMAGE_WORKERS = 32


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """What every worker of a run is told, once.

    ``settings``: those of the run as the driver sees model and manifest.
    """

    config: JobConfig
    folder: PartsFolder
    working_folder: str
    command: tuple[str, ...]
    probe: Probe
    settings: dict[str, Any]
    num_cpus: int
    version: str = __version__


@dataclass(frozen=True, slots=True)
class Opened:
    """Which node a worker is on, and why it cannot answer there, if so."""

    node: str
    error: VlmbatchError | None = None


@dataclass(frozen=True, slots=True)
class PartOutcome:
    """What became of a part: its figures, and what ended it early, if anything.

    ``taken``: another run has put the same part meanwhile, and its answers count.
    """

    stats: RunStats
    error: VlmbatchError | None = None
    taken: bool = False


class PartWorker:
    """An engine of its own, loaded for the first part that has rows to answer.

    ``open`` comes first. ``answer`` is called on one and the same thread, ``progress`` and ``stop``
    meanwhile on others.
    """

    def __init__(self, job: WorkerJob) -> None:
        self._job = job
        self._config = _on_share(job.config, job.num_cpus)
        self._resources = ExitStack()
        self._inputs: Inputs | None = None
        self._replica: Replica | None = None
        self._memory: SharedMemory | None = None  # of the images of an engine that is divided
        self._part: Part | None = None
        self._stats = RunStats()
        self._stop: StopRequest | None = None
        self._stopped: RunStoppedError | None = None

    def open(self) -> Opened:
        """Read model and manifest as they are seen from this node, and compare."""
        node = socket.gethostname()
        try:
            self._open()
        except VlmbatchError as error:
            return Opened(node, error)
        return Opened(node)

    def answer(self, part: Part, policy: RunPolicy) -> PartOutcome:
        """Answer what is left of a part, and commit it.

        Raises:
            EnginesLostError: ranks that divide the model have ended again and again.
        """
        assert self._inputs is not None, "open comes first"
        stats = RunStats()
        self._part, self._stats = part, stats
        stop = self._stop = StopRequest(policy.grace_s)
        if self._stopped is not None:  # it came between two parts
            stop.request(self._stopped)
        manifest = self._inputs.manifest
        rows, num_rows = manifest.rows_of(part), manifest.scanned().num_rows
        task = PartTask(part, rows, num_rows, fingerprint(self._job.settings))
        config = replace(self._config, policy=policy)
        try:
            taken = self._job.folder.write(task, config, stats, self._answer)
            stats.finish()
        except VlmbatchError as error:
            if isinstance(error, RunStoppedError) and self._stopped is None:
                raise EnginesLostError(str(error)) from error  # Ray starts this process anew
            return PartOutcome(stats, error)
        finally:
            self._stop = None
            if self._replica is not None and self._replica.num_unfinished:
                self._replica.reset()
        return PartOutcome(stats, taken=taken)

    def progress(self) -> tuple[Part | None, RunStats]:
        """The part under way, or the last one, and how far it is."""
        part = self._part
        return part, self._stats.copy()

    def stop(self, message: str, exit_status: int) -> None:
        """Admit no more rows; those under way get the time of grace."""
        self._stopped = RunStoppedError(message, exit_status)
        if (stop := self._stop) is not None:
            stop.request(self._stopped)

    def close(self) -> None:
        """Free the engine."""
        self._resources.close()
        self._replica = None

    def _open(self) -> None:
        job = self._job
        sys.argv = list(job.command)  # what locks and records say of who holds them
        with contextlib.suppress(OSError):  # absolute paths do without
            os.chdir(job.working_folder)
        if job.version != __version__:
            raise UsageError(f"it has vlmbatch {__version__}, and the driver {job.version}")
        job.folder.see(job.probe)
        inputs = open_job(self._config)
        settings = run_settings(self._config, inputs, inputs.manifest.scanned())
        if fingerprint(settings) != fingerprint(job.settings):
            seen_here = RunRecord.new(job.settings, "", 0).changes(settings)
            lines = "".join(f"\n  {explained(change)}" for change in seen_here)
            raise UsageError(f"model or manifest are others there than for the driver:{lines}")
        self._inputs = inputs

    def _answer(self, config: JobConfig, stats: RunStats) -> None:
        """Answer the rows of a part into a folder that is seen here."""
        assert self._inputs is not None and self._stop is not None
        with open_output(config, self._inputs, stats) as output:
            if was_complete(output, stats):
                return
            replica = self._loaded(stats)
            with closing(self._start_images()) as images:
                answer_manifest(config, self._inputs, replica, images, output, stats, self._stop)

    def _loaded(self, stats: RunStats) -> Replica:
        if self._replica is None:
            assert self._inputs is not None
            stats.stage = "loading the model"
            session, inputs = self._config.session, self._inputs
            ranks = engine_places(session.engine, "one")  # none: it is not divided
            replica = self._resources.enter_context(
                loaded_replica(session, inputs, ranks, gather_seconds=GATHER_SECONDS)
            )
            self._memory = replica.memory if isinstance(replica, ReplicaPool) else None
            self._replica = composed(replica, inputs.model, inputs.processor.tokenizer)
        return self._replica

    def _start_images(self) -> ImageLoader:
        assert self._inputs is not None
        images = start_images(self._config.session, self._inputs)
        return images if self._memory is None else SharedLoader(images, self._memory)


def _on_share(config: JobConfig, num_cpus: int) -> JobConfig:
    """The job within a worker's share of its node's cores."""
    session = config.session
    if session.image_loading.workers is not None:
        return config
    for_engine = session.engine.tensor_parallel  # a core beside each GPU
    cores = num_cpus // 4 if session.engine.device == "cpu" else num_cpus - for_engine
    loading = replace(session.image_loading, workers=max(1, min(cores, _MAX_IMAGE_WORKERS)))
    return replace(config, session=replace(session, image_loading=loading))
