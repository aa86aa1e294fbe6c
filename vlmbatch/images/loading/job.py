"""An image under way, and what hands images to those who hold processes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from vlmbatch.errors import RowError
from vlmbatch.images.loading.child import ChildProcess, WorkerLostError
from vlmbatch.images.loading.process import Decoded
from vlmbatch.images.loading.recent import ImageKey
from vlmbatch.types import ImageInput, ImageRef


@dataclass(eq=False, slots=True)
class Job:
    """Rows that show the image share its future."""

    key: ImageKey
    ref: ImageRef
    future: Future[ImageInput] = field(default_factory=Future)


class JobQueue(Protocol):
    """Where images come from, and go to. Thread-safe."""

    @property
    def ended(self) -> bool:
        """Whether nobody waits for images any more."""
        ...

    def next_job(self) -> Job | None:
        """The next image for a worker; None when there will be no more."""
        ...

    def put_back(self, job: Job) -> None:
        """An image for the next worker."""
        ...

    def next_batch(self, most: int, max_bytes: int) -> list[Job]:
        """At least one image for the device, and as many as wait; none when there will be no more.

        ``max_bytes``: of embedded images, where there is more than one.
        """
        ...

    def leave_to_workers(self, jobs: Sequence[Job]) -> None:
        """Images that were the device's."""
        ...

    def settle(self, job: Job, outcome: Decoded | RowError) -> None:
        """What has become of an image."""
        ...

    def adopt(self, process: ChildProcess) -> None:
        """Take note of a process: when there are no more images, it is killed."""
        ...

    def forget(self, process: ChildProcess) -> None:
        """Kill and close a process."""
        ...

    def worker_ready(self) -> None:
        """One more worker is up."""
        ...

    def device_ready(self) -> None:
        """The device's process is up, or will not be."""
        ...

    def count_loss(self, loss: WorkerLostError) -> None:
        """Pause before a worker that ended with no image in hand is replaced."""
        ...
