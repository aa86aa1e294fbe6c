"""Gives images to a worker process, and replaces it."""

from __future__ import annotations

from vlmbatch.errors import RowError
from vlmbatch.images.loading.child import WorkerLostError
from vlmbatch.images.loading.job import Job, JobQueue
from vlmbatch.images.loading.process import WorkerProcess
from vlmbatch.images.loading.settings import WorkerSettings
from vlmbatch.log import logger


class WorkerFeed:
    """The life of the thread that holds a worker."""

    def __init__(self, settings: WorkerSettings, queue: JobQueue) -> None:
        self._settings = settings
        self._queue = queue

    def run(self) -> None:
        """Decode until there are no more images."""
        worker = None
        while not self._queue.ended:
            try:
                worker = worker or self._start()
                job = self._queue.next_job()
                if job is not None:
                    self._decode(worker, job)
            except WorkerLostError as loss:
                self._queue.count_loss(loss)
            if worker is not None and not worker.alive:
                self._queue.forget(worker)
                worker = None
        if worker is not None:
            self._queue.forget(worker)

    def _start(self) -> WorkerProcess:
        worker = WorkerProcess(self._settings)
        self._queue.adopt(worker)
        try:
            worker.wait_ready()
        except WorkerLostError:
            self._queue.forget(worker)
            raise
        self._queue.worker_ready()
        return worker

    def _decode(self, worker: WorkerProcess, job: Job) -> None:
        try:
            self._queue.settle(job, worker.decode(job.ref))
        except RowError as error:
            if not worker.alive:
                logger.debug("an image worker is replaced: %s", error)
            self._queue.settle(job, error)
        except WorkerLostError:
            self._queue.put_back(job)
            raise
