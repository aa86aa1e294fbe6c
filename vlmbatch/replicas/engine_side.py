"""What an engine process does with the messages of its pool. No process, no torch."""

from __future__ import annotations

import time
from dataclasses import replace

from vlmbatch.images.shared_memory import MappedMemory
from vlmbatch.replicas.messages import (
    Cancel,
    ExpectNoMore,
    Report,
    Submit,
    TakeBack,
    ToEngine,
)
from vlmbatch.replicas.replica import EngineReplica
from vlmbatch.replicas.sharing import image_of, inputs_of
from vlmbatch.types import Request

_REPORT_SECONDS = 0.1  # between reports that tell of progress alone


class EngineSide:
    """Obeys messages on behalf of ``replica``, whose images are in ``memory``."""

    def __init__(self, replica: EngineReplica, memory: MappedMemory) -> None:
        self._replica = replica
        self._memory = memory
        self._received = 0
        self._returned: tuple[int, ...] | None = None
        self._last = Report(0, [], replica.status, wants_requests=True)
        self._reported_at = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do before another message comes."""
        return self._replica.num_unfinished == 0

    @property
    def fills_step(self) -> bool:
        return self._replica.fills_step

    def obey(self, message: ToEngine) -> None:
        self._received += 1
        if isinstance(message, Submit):
            self._replica.submit(self._request(message), stream=message.stream)
        elif isinstance(message, Cancel):
            self._replica.cancel(message.serial)
        elif isinstance(message, TakeBack):
            self._returned = tuple(self._replica.take_back(message.most))
        elif isinstance(message, ExpectNoMore):
            self._replica.expect_no_more()
        else:
            self._replica.reset()

    def step(self) -> Report | None:
        """Let the replica work; what there is to tell, if it is worth a message."""
        events = [] if self.is_idle else self._replica.poll()
        report = Report(
            self._received,
            events,
            self._replica.status,
            self._replica.wants_requests,
            self._returned,
        )
        last = self._last
        if (
            not events
            and report.returned is None
            and report.received == last.received
            and report.status.waiting == last.status.waiting
            and report.wants_requests == last.wants_requests
            and not self.is_idle
            and time.monotonic() < self._reported_at + _REPORT_SECONDS
        ):
            return None
        self._last, self._returned, self._reported_at = report, None, time.monotonic()
        return report

    def _request(self, message: Submit) -> Request:
        images = tuple(image_of(image, self._memory) for image in message.images)
        inputs = None if message.inputs is None else inputs_of(message.inputs, self._memory)
        return replace(message.request, images=images, inputs=inputs)
