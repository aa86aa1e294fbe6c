"""A fixed number of worker processes, each with a thread here that feeds it and replaces it.

One more thread completes the futures of images: what waits for them runs there, image by image. On
the threads of workers it would take the interpreter lock from each other, and a worker would have
to wait for its next image.

Where JPEGs are decoded on a device, one more process has every image first: see ``device_feed``.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future

from vlmbatch.config import ImageDecoder, ImageLimits
from vlmbatch.durable.content_digest import content_digest
from vlmbatch.errors import OutputError, RowError, VlmbatchError, is_shortage
from vlmbatch.images.loading.child import ChildProcess, WorkerLostError
from vlmbatch.images.loading.device_feed import DeviceFeed
from vlmbatch.images.loading.device_jobs import DeviceJobs
from vlmbatch.images.loading.job import Job
from vlmbatch.images.loading.process import Decoded
from vlmbatch.images.loading.protocol import file_identity
from vlmbatch.images.loading.recent import ImageKey, RecentImages
from vlmbatch.images.loading.settings import DeviceDecoder, DeviceSettings, WorkerSettings
from vlmbatch.images.loading.worker_feed import WorkerFeed
from vlmbatch.log import logger
from vlmbatch.models.processor import ImageProcessor
from vlmbatch.types import ImageInput, ImageRef

# Workers that end with no image in hand, one after another, before the pool gives up: this many
# for each. The pause before the next one doubles each time.
_MAX_LOSSES = 3
_PAUSE_SECONDS = 0.1


class ImageWorkers:
    """Decodes images in ``num_workers`` processes; an ``ImageLoader``.

    An image whose decoder crashes its process, or takes more than ``timeout_s`` seconds, is an
    error of its own, and the process is replaced. At most ``slots`` images wait or are being
    decoded: ``submit`` waits while there are more. An image that is asked for while it is under
    way, or is among the last ``recent_bytes`` of pixels and its file has not changed since, is not
    decoded again. Arrays are read-only, as rows share them.

    ``open_device``: makes what decodes JPEGs on a device, in a process of its own, to which it is
    pickled; workers have what it leaves.
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
        open_device: Callable[[], DeviceDecoder] | None = None,
    ) -> None:
        assert num_workers > 0
        assert slots > 0
        settings = WorkerSettings(limits, processor, decoder, timeout_s)
        self._processor = processor
        self._slots = slots
        self._num_workers = num_workers
        self._max_losses = _MAX_LOSSES * num_workers
        # The lock guards all that follows; its conditions: a place is free, an image waits
        # for a worker, a process is ready.
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._work = threading.Condition(self._lock)
        self._started = threading.Condition(self._lock)
        self._under_way: dict[ImageKey, Job] = {}
        self._waiting: deque[Job] = deque()
        self._for_device: DeviceJobs | None = None  # where there is one
        self._device_is_up = True  # or will not be
        self._recent: RecentImages[ImageKey, Decoded] = RecentImages(
            recent_bytes, lambda decoded: decoded.image.pixels.nbytes
        )
        self._processes: set[ChildProcess] = set()
        self._num_started = 0  # workers that were ever ready
        self._losses = 0  # since an image was last decoded
        self._end: BaseException | None = None  # why no more images are taken
        self._ended = threading.Event()
        self._settled: queue.SimpleQueue[tuple[Job, Decoded | RowError] | None] = (
            queue.SimpleQueue()
        )
        self._completing = self._thread("image-futures", self._complete)
        self._threads = [
            self._thread(f"image-worker-{index}", WorkerFeed(settings, self).run)
            for index in range(num_workers)
        ]
        if open_device is not None:
            self._for_device, self._device_is_up = DeviceJobs(self._lock), False
            feed = DeviceFeed(DeviceSettings(limits, processor, open_device, timeout_s), self)
            self._threads.append(self._thread("image-device", lambda: self._serve_device(feed)))
        for thread in (self._completing, *self._threads):
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
        key = ref.path, digest, ref.resolution, alike, ref.page
        while True:
            with self._lock:
                self._room.wait_for(lambda: self._is_at_hand(key) or self._has_room())
                if self._end is not None:
                    raise self._end
                job, recent = self._under_way.get(key), self._recent.get(key)
                if job is None and recent is None:
                    job = self._enqueue(Job(key, ref))
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
                self._recent.pop(key)

    def wait_ready(self) -> None:
        """Wait until the processes are up, or none will be any more."""
        with self._lock:
            self._started.wait_for(
                lambda: (
                    (self._num_started >= self._num_workers and self._device_is_up)
                    or self._end is not None
                )
            )

    def close(self) -> None:
        """End threads and processes. Futures of images under way raise CancelledError.

        It may be called again.
        """
        self._stop(CancelledError())
        for thread in self._threads:
            thread.join()
        self._settled.put(None)
        self._completing.join()

    def _is_at_hand(self, key: ImageKey) -> bool:
        return key in self._under_way or self._recent.get(key) is not None

    def _has_room(self) -> bool:
        return len(self._under_way) < self._slots or self._end is not None

    def _enqueue(self, job: Job) -> Job:
        job.future.set_running_or_notify_cancel()  # rows share it: none may cancel it
        self._under_way[job.key] = job
        if self._for_device is not None:
            self._for_device.append(job)
        else:
            self._waiting.append(job)
            self._work.notify()
        return job

    def _thread(self, name: str, serve: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=self._run, args=(serve,), name=name, daemon=True)

    def _run(self, serve: Callable[[], None]) -> None:
        """The life of one process's thread. If it fails, nobody shall wait for it."""
        try:
            serve()
        except BaseException as error:
            self._stop(error)
            raise

    def _serve_device(self, feed: DeviceFeed) -> None:
        feed.run()
        with self._lock:
            assert self._for_device is not None
            left, self._for_device = self._for_device.end(), None
        self.leave_to_workers(left)

    @property
    def ended(self) -> bool:
        """See ``JobQueue``."""
        return self._end is not None

    def adopt(self, process: ChildProcess) -> None:
        """See ``JobQueue``."""
        with self._lock:
            self._processes.add(process)
            if self._end is not None:
                process.kill()

    def forget(self, process: ChildProcess) -> None:
        """See ``JobQueue``: it is killed."""
        with self._lock:
            self._processes.discard(process)
        process.close()

    def worker_ready(self) -> None:
        """See ``JobQueue``."""
        with self._lock:
            self._num_started += 1
            self._started.notify_all()

    def device_ready(self) -> None:
        """See ``JobQueue``."""
        with self._lock:
            self._device_is_up = True
            self._started.notify_all()

    def next_batch(self, most: int, max_bytes: int) -> list[Job]:
        """See ``JobQueue``."""
        with self._lock:
            assert self._for_device is not None
            return self._for_device.next_batch(most, max_bytes)

    def leave_to_workers(self, jobs: Sequence[Job]) -> None:
        """See ``JobQueue``."""
        with self._lock:
            if self._end is None:
                self._waiting.extend(jobs)
                self._work.notify(len(jobs))

    def next_job(self) -> Job | None:
        """See ``JobQueue``."""
        with self._lock:
            self._work.wait_for(lambda: self._waiting or self._end is not None)
            return self._waiting.popleft() if self._waiting else None

    def put_back(self, job: Job) -> None:
        """See ``JobQueue``."""
        with self._lock:
            self._waiting.appendleft(job)
            self._work.notify()

    def settle(self, job: Job, outcome: Decoded | RowError) -> None:
        """See ``JobQueue``."""
        with self._lock:
            if self._under_way.pop(job.key, None) is None:
                return  # given up meanwhile
            self._losses = 0
            if isinstance(outcome, Decoded):
                self._recent.put(job.key, outcome)
            self._room.notify()  # and not all: each would take the interpreter lock for nothing
        self._settled.put((job, outcome))

    def _complete(self) -> None:
        while (settled := self._settled.get()) is not None:
            job, outcome = settled
            if isinstance(outcome, Decoded):
                job.future.set_result(outcome.image)
            else:
                job.future.set_exception(outcome)

    def count_loss(self, loss: WorkerLostError) -> None:
        """See ``JobQueue``: after too many losses in a row, give up."""
        with self._lock:
            self._losses += 1
            losses = self._losses
        if losses < self._max_losses:
            logger.debug("an image worker is replaced: %s", loss)
            self._ended.wait(_PAUSE_SECONDS * 2 ** (losses / self._num_workers))
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
            if self._for_device is not None:
                self._for_device.end()
            for process in self._processes:
                process.kill()
            self._room.notify_all()
            self._work.notify_all()
            self._started.notify_all()
        self._ended.set()
        for job in given_up:
            job.future.set_exception(reason)
