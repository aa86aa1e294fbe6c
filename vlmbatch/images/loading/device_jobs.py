"""Images that wait for a device."""

from __future__ import annotations

import threading
from collections import deque

from vlmbatch.images.loading.job import Job

# An image interrupts what else the device does as much as several together: so long it waits for
# others to come.
_LINGER_SECONDS = 0.005


class DeviceJobs:
    """In the order in which they came. ``lock`` guards it: all of it is called with the lock."""

    def __init__(self, lock: threading.Lock) -> None:
        self._jobs: deque[Job] = deque()
        self._ended = False
        self._change = threading.Condition(lock)

    def append(self, job: Job) -> None:
        """One more; none may come after ``end``."""
        assert not self._ended
        self._jobs.append(job)
        self._change.notify()

    def next_batch(self, most: int, max_bytes: int) -> list[Job]:
        """Wait for images, without the lock; see ``JobQueue``."""
        self._change.wait_for(lambda: self._jobs or self._ended)
        self._change.wait_for(lambda: len(self._jobs) >= most or self._ended, _LINGER_SECONDS)
        batch: list[Job] = []
        while self._jobs and len(batch) < most:
            max_bytes -= self._jobs[0].ref.num_bytes
            if batch and max_bytes < 0:
                break
            batch.append(self._jobs.popleft())
        return batch

    def end(self) -> list[Job]:
        """There will be no more batches; those that wait."""
        left = list(self._jobs)
        self._jobs.clear()
        self._ended = True
        self._change.notify_all()
        return left
