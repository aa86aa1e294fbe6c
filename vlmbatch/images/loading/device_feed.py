"""Gives images to the process that decodes on a device, and finds out which it cannot bear."""

from __future__ import annotations

from collections.abc import Sequence

from vlmbatch.errors import RowError
from vlmbatch.images.loading.child import WorkerLostError
from vlmbatch.images.loading.device_process import (
    BatchLostError,
    DeviceProcess,
    images_at_once,
)
from vlmbatch.images.loading.job import Job, JobQueue
from vlmbatch.images.loading.process import Decoded
from vlmbatch.images.loading.settings import DeviceSettings
from vlmbatch.log import logger

# A crash costs the seconds that a new process takes, in which nothing is decoded: so many are
# borne, and one more for so many images.
_CRASHES = 5
_IMAGES_A_CRASH = 500
_MAX_LOSSES = 2  # processes that end with no image in hand, one after another
_MAX_BODY_BYTES = 2**26  # of embedded images in a batch


class DeviceFeed:
    """The life of the thread that holds the device's process."""

    def __init__(self, settings: DeviceSettings, queue: JobQueue) -> None:
        self._settings = settings
        self._queue = queue
        self._most = images_at_once(settings.processor.largest_grid.num_bytes)
        self._process: DeviceProcess | None = None
        self._decoded = 0
        self._crashes = 0
        self._losses = 0

    def run(self) -> None:
        """Decode until there are no more images, or the device's process cannot be kept running."""
        try:
            self._start_early()
            while self._is_worth_it and (
                batch := self._queue.next_batch(self._most, _MAX_BODY_BYTES)
            ):
                self._decode(batch)
        finally:
            self._drop_process()

    @property
    def _is_worth_it(self) -> bool:
        allowed = _CRASHES + self._decoded // _IMAGES_A_CRASH
        return self._crashes <= allowed and self._losses < _MAX_LOSSES

    def _start_early(self) -> None:
        """While nobody waits yet; memory of the device is taken now."""
        while self._process is None and self._is_worth_it and not self._queue.ended:
            try:
                self._process = self._start()
            except WorkerLostError as loss:
                self._count_loss(loss)
        self._queue.device_ready()

    def _decode(self, jobs: Sequence[Job]) -> None:
        if self._queue.ended:
            return
        if not self._is_worth_it:
            self._queue.leave_to_workers(jobs)
            return
        left = dict(enumerate(jobs))
        try:
            self._process = self._process or self._start()
            for place, outcome in self._process.decode([job.ref for job in jobs]):
                self._take(left.pop(place), outcome)
        except RowError as error:
            self._count_crash(error)
            for job in left.values():
                self._queue.settle(job, error)
        except BatchLostError as loss:
            self._count_crash(loss)
            for job in left.values():
                self._decode([job])
        except WorkerLostError as loss:
            self._drop_process()
            self._count_loss(loss)
            self._decode([*left.values()])

    def _take(self, job: Job, outcome: Decoded | None) -> None:
        self._losses = 0
        if outcome is None:
            self._queue.leave_to_workers([job])
        else:
            self._decoded += 1
            self._queue.settle(job, outcome)

    def _start(self) -> DeviceProcess:
        process = DeviceProcess(self._settings)
        self._queue.adopt(process)
        try:
            process.wait_ready()
        except WorkerLostError:
            self._queue.forget(process)
            raise
        return process

    def _drop_process(self) -> None:
        if self._process is not None:
            self._queue.forget(self._process)
            self._process = None

    def _count_crash(self, what: Exception) -> None:
        self._drop_process()
        self._crashes += 1
        logger.debug("what decodes on the device is replaced: %s", what)
        self._tell_of_end(what)

    def _count_loss(self, loss: WorkerLostError) -> None:
        self._losses += 1
        logger.debug("what decodes on the device is replaced: %s", loss)
        self._tell_of_end(loss)

    def _tell_of_end(self, what: Exception) -> None:
        if not self._is_worth_it and not self._queue.ended:
            logger.warning(
                "image workers decode from here on, as with --image-decoder exact: what decodes on "
                "the device cannot be kept running (%d crashes, %d images decoded; the last time: "
                "%s)",
                self._crashes,
                self._decoded,
                what,
            )
