"""What an engine process does with the messages of its pool. No process, no torch."""

from __future__ import annotations

import time
from dataclasses import replace

from vlmbatch.images.shared_memory import MappedMemory
from vlmbatch.replicas.followers import Followers
from vlmbatch.replicas.messages import (
    Cancel,
    ExpectNoMore,
    Report,
    Step,
    Submit,
    TakeBack,
    ToEngine,
)
from vlmbatch.replicas.replica import EngineReplica, Event
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
        """``message`` is no ``Step``."""
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
        report, last = self.report(events), self._last
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

    def report(self, events: list[Event]) -> Report:
        """What has come of the messages, with ``events``."""
        replica = self._replica
        return Report(
            self._received, events, replica.status, replica.wants_requests, self._returned
        )

    def _request(self, message: Submit) -> Request:
        images = tuple(image_of(image, self._memory) for image in message.images)
        inputs = None if message.inputs is None else inputs_of(message.inputs, self._memory)
        return replace(message.request, images=images, inputs=inputs)


class LeadingSide(EngineSide):
    """Of rank 0: the others are told the same, and run the same steps on their parts of the model.

    From the same requests, in the same order, their schedulers make the same steps.
    """

    def __init__(self, replica: EngineReplica, memory: MappedMemory, followers: Followers) -> None:
        super().__init__(replica, memory)
        self._followers = followers
        self._must_agree = False

    def obey(self, message: ToEngine) -> None:
        super().obey(message)
        self._followers.tell(message)
        # What is given up here may be on its way into a step there, and the pool frees its images.
        self._must_agree |= not isinstance(message, (Submit, ExpectNoMore))

    def step(self) -> Report | None:
        self._followers.tell(Step(self._must_agree))
        if self._must_agree:
            self._followers.await_reports()
            self._must_agree = False
        return super().step()
