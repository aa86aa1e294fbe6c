"""A fixed number of worker processes, each with a thread here that feeds it and replaces it."""

from __future__ import annotations

import pickle
import threading
from collections import deque
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

from vlmbatch.config import ImageDecoder, ImageLimits
from vlmbatch.durable.content_digest import content_digest
from vlmbatch.errors import OutputError, RowError, VlmbatchError, is_shortage
from vlmbatch.images.loading.process import Decoded, WorkerLostError, WorkerProcess
from vlmbatch.images.loading.protocol import file_identity
from vlmbatch.images.loading.recent import ImageKey, RecentImages
from vlmbatch.log import logger
from vlmbatch.models.family import ImageProcessor
from vlmbatch.types import ImageInput, ImageRef

# Workers that end with no image in hand, one after another, before the pool gives up: this many
# for each. The pause before the next one doubles each time.
_MAX_LOSSES = 3
_PAUSE_SECONDS = 0.1


@dataclass(eq=False, slots=True)
class _Job:
    key: ImageKey
    ref: ImageRef
    future: Future[ImageInput] = field(default_factory=Future)


class ImageWorkers:
    """Decodes images in ``num_workers`` processes; an ``ImageLoader``.

    An image whose decoder crashes its process, or takes more than ``timeout_s`` seconds, is an
    error of its own, and the process is replaced. At most ``slots`` images wait or are being
    decoded: ``submit`` waits while there are more. An image that is asked for while it is under
    way, or is among the last ``recent_bytes`` of pixels and its file has not changed since, is not
    decoded again. Arrays are read-only, as rows share them.
    """

    def __init__(
        self,
        limits: ImageLimits,
        processor: ImageProcessor,
        num_workers: int,
        timeout_s: float,
        slots: int,
        recent_bytes: int = 256 * 2**20,
        decoder: ImageDecoder = "exact",
    ) -> None:
        assert num_workers > 0
        assert slots > 0
        self._settings = pickle.dumps((limits, processor, decoder, timeout_s))
        self._processor = processor
        self._max_bytes = processor.largest_grid.num_bytes
        self._timeout_s = timeout_s
        self._slots = slots
        self._max_losses = _MAX_LOSSES * num_workers
        # The lock guards all that follows; its conditions: a place is free, an image waits,
        # a worker is ready.
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._work = threading.Condition(self._lock)
        self._started = threading.Condition(self._lock)
        self._under_way: dict[ImageKey, _Job] = {}
        self._waiting: deque[_Job] = deque()
        self._recent = RecentImages(recent_bytes)
        self._processes: set[WorkerProcess] = set()
        self._num_started = 0  # workers that were ever ready
        self._losses = 0  # since an image was last decoded
        self._end: BaseException | None = None  # why no more images are taken
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"image-worker-{index}", daemon=True)
            for index in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        """Begin with an image, or join in where it is under way.

        Raises:
            VlmbatchError: the worker processes cannot be kept running; an OutputError where the
            system is short of what they take.
            CancelledError: the pool is closed.
        """
        digest = None if ref.data is None else content_digest(ref.data)
        alike = self._processor.at(None, ref.row_images).fingerprint
        key = ref.path, digest, ref.resolution, alike
        while True:
            with self._lock:
                self._room.wait_for(lambda: self._is_at_hand(key) or self._has_room())
                if self._end is not None:
                    raise self._end
                job, recent = self._under_way.get(key), self._recent.get(key)
                if job is None and recent is None:
                    job = self._enqueue(_Job(key, ref))
                if self._has_room():
                    self._room.notify()  # it was not needed here, or there is more
                if job is not None:
                    return job.future
                assert recent is not None
            # Without the lock: the file may lie on a slow network.
            if digest is not None or recent.identity == file_identity(ref.path or ""):
                future: Future[ImageInput] = Future()
                future.set_result(recent.image)
                return future
            with self._lock:
                self._recent.discard(key)

    def wait_ready(self) -> None:
        """Wait until the workers are up, or none will be any more."""
        with self._lock:
            self._started.wait_for(
                lambda: self._num_started >= len(self._threads) or self._end is not None
            )

    def close(self) -> None:
        """End threads and processes. Futures of images under way raise CancelledError.

        It may be called again.
        """
        self._stop(CancelledError())
        for thread in self._threads:
            thread.join()

    def _is_at_hand(self, key: ImageKey) -> bool:
        return key in self._under_way or self._recent.get(key) is not None

    def _has_room(self) -> bool:
        return len(self._under_way) < self._slots or self._end is not None

    def _enqueue(self, job: _Job) -> _Job:
        job.future.set_running_or_notify_cancel()  # rows share it: none may cancel it
        self._under_way[job.key] = job
        self._waiting.append(job)
        self._work.notify()
        return job

    def _run(self) -> None:
        """The life of one worker's thread. If it fails, nobody shall wait for it."""
        try:
            self._serve()
        except BaseException as error:
            self._stop(error)
            raise

    def _serve(self) -> None:
        worker = None
        while self._end is None:
            try:
                worker = worker or self._start()
                job = self._next_job()
                if job is not None:
                    self._decode(worker, job)
            except WorkerLostError as loss:
                self._count_loss(loss)
            if worker is not None and not worker.alive:
                self._forget(worker)
                worker = None
        if worker is not None:
            self._forget(worker)

    def _start(self) -> WorkerProcess:
        worker = WorkerProcess(self._settings, self._max_bytes, self._timeout_s)
        with self._lock:
            self._processes.add(worker)
            if self._end is not None:
                worker.kill()
        try:
            worker.wait_ready()
        except WorkerLostError:
            self._forget(worker)
            raise
        with self._lock:
            self._num_started += 1
            self._started.notify_all()
        return worker

    def _forget(self, worker: WorkerProcess) -> None:
        with self._lock:
            self._processes.discard(worker)
        worker.close()

    def _next_job(self) -> _Job | None:
        """The next image; None when the pool ends."""
        with self._lock:
            self._work.wait_for(lambda: self._waiting or self._end is not None)
            return self._waiting.popleft() if self._waiting else None

    def _decode(self, worker: WorkerProcess, job: _Job) -> None:
        try:
            self._settle(job, worker.decode(job.ref))
        except RowError as error:
            if not worker.alive:
                logger.debug("an image worker is replaced: %s", error)
            self._settle(job, error)
        except WorkerLostError:
            with self._lock:
                self._waiting.appendleft(job)
                self._work.notify()
            raise

    def _settle(self, job: _Job, outcome: Decoded | RowError) -> None:
        with self._lock:
            if self._under_way.pop(job.key, None) is None:
                return  # given up meanwhile
            self._losses = 0
            if isinstance(outcome, Decoded):
                self._recent.put(job.key, outcome)
            self._room.notify()  # and not all: each would take the interpreter lock for nothing
        if isinstance(outcome, Decoded):
            job.future.set_result(outcome.image)
        else:
            job.future.set_exception(outcome)

    def _count_loss(self, loss: WorkerLostError) -> None:
        """Pause before a worker is replaced; after too many losses in a row, give up."""
        with self._lock:
            self._losses += 1
            losses = self._losses
        if losses < self._max_losses:
            logger.debug("an image worker is replaced: %s", loss)
            self._ended.wait(_PAUSE_SECONDS * 2 ** (losses / len(self._threads)))
            return
        cause = loss.__cause__
        kind = OutputError if cause is not None and is_shortage(cause) else VlmbatchError
        self._stop(
            kind(
                f"image workers cannot be kept running: {losses} ended one after another, the "
                f"last with: {loss}; --image-workers 0 decodes without them, and without their "
                "protection from images that crash or hang"
            )
        )

    def _stop(self, reason: BaseException) -> None:
        with self._lock:
            if self._end is None:
                self._end = reason
            given_up = list(self._under_way.values())
            self._under_way.clear()
            self._waiting.clear()
            for worker in self._processes:
                worker.kill()
            self._room.notify_all()
            self._work.notify_all()
            self._started.notify_all()
        self._ended.set()
        for job in given_up:
            job.future.set_exception(reason)
