"""One engine as its pool sees it: what it has to do, and how much more it would take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from queue import SimpleQueue
from typing import Protocol

from vlmbatch.errors import OutputError
from vlmbatch.log import logger
from vlmbatch.replicas.messages import (
    Cancel,
    EngineLimits,
    FromEngine,
    Ready,
    Report,
    Reset,
    Submit,
    TakeBack,
    ToEngine,
)
from vlmbatch.replicas.replica import ReplicaStatus
from vlmbatch.replicas.sharing import Shared
from vlmbatch.types import Request

_TOTALS = ("prompt_tokens", "cached_tokens", "generation_tokens", "preemptions", "answered")


class Link(Protocol):
    """The way to one life of an engine; what comes back is put into the pool's ``News``."""

    def send(self, message: ToEngine) -> None:
        """Hand a message over, without waiting; it is dropped where the engine has ended."""
        ...

    def kill(self) -> None:
        """Begin to end the engine."""
        ...

    def close(self) -> None:
        """End the engine and wait until it has ended; what it held is free then."""
        ...


News = SimpleQueue[tuple[Link, FromEngine]]
Start = Callable[[News], Link]


@dataclass(eq=False, slots=True)
class Held:
    """A request that has not ended.

    ``shared``: its images, which are in shared memory as long as this holds them. ``work``: tokens
    that it takes, as far as can be guessed. ``begun``: whether something of it may have been
    computed where it is now. ``deaths``: of engines that it was under way in. ``told``: tokens that
    were streamed.
    """

    serial: int
    request: Request
    stream: bool
    shared: Shared
    work: int
    begun: bool = False
    deaths: int = 0
    told: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what an engine has died of."""
        return self.deaths > 0


class Member:
    """One of a pool's engines, through all of its lives."""

    def __init__(self, name: str, start: Start, news: News) -> None:
        self.name = name
        self.restarts = 0
        self.was_ready = False  # in any of its lives
        self.gone = False  # it is not started again
        self.requests: dict[int, Held] = {}  # by serial number
        self.limits: EngineLimits | None = None  # once it is ready
        self.work = 0  # tokens that its requests take
        self.num_suspects = 0
        self.taking_back = False  # it was asked to, and has not answered
        self._start = start
        self._news = news
        self._earlier = ReplicaStatus()  # totals of earlier lives
        self._begin_life()

    def _begin_life(self) -> None:
        self.link = self._start(self._news)
        self._last = Report(0, [], ReplicaStatus(), wants_requests=True)
        self._sent = 0
        # With the number of the message: submissions that no report tells of yet, and requests
        # given up whose images the engine may still look at.
        self._on_the_way: deque[tuple[int, Held]] = deque()
        self._given_up: deque[tuple[int, Held]] = deque()

    @property
    def is_ready(self) -> bool:
        return self.limits is not None

    @property
    def num_waiting(self) -> int:
        """Requests that wait in it or are on the way there, as far as is known."""
        return self._last.status.waiting + len(self._on_the_way)

    @property
    def wants_requests(self) -> bool:
        return (
            self.limits is not None
            and self._last.wants_requests
            and self.num_waiting < self.limits.max_waiting
        )

    @property
    def is_hungry(self) -> bool:
        """Whether it has begun with all that it has."""
        return self.is_ready and self._sent == self._last.received and self.num_waiting == 0

    @property
    def status(self) -> ReplicaStatus:
        now = self._last.status
        return replace(now, **{name: getattr(now, name) + self._before(name) for name in _TOTALS})

    def ready(self, message: Ready) -> None:
        self.limits = message.limits
        self.was_ready = True

    def submit(self, held: Held) -> None:
        held.begun = False
        self.requests[held.serial] = held
        self.work += held.work
        self.num_suspects += held.is_suspect
        request = replace(held.request, index=held.serial, images=(), inputs=None)
        self.send(Submit(request, held.shared.images, held.shared.inputs, held.stream))
        self._on_the_way.append((self._sent, held))

    def forget(self, serial: int) -> Held | None:
        """A request that is no longer here, if it was."""
        held = self.requests.pop(serial, None)
        if held is not None:
            self.work -= held.work
            self.num_suspects -= held.is_suspect
        return held

    def cancel(self, held: Held) -> None:
        """Give up a request, if it is here."""
        if self.forget(held.serial) is not None:
            self.send(Cancel(held.serial))
            self._given_up.append((self._sent, held))

    def take_back(self, most: int) -> None:
        self.taking_back = True
        self.send(TakeBack(most))

    def reset(self) -> None:
        self.send(Reset())
        self._given_up.extend((self._sent, held) for held in self._forget_all())

    def send(self, message: ToEngine) -> None:
        self._sent += 1
        self.link.send(message)

    def take(self, report: Report) -> list[Held]:
        """Take in what is reported; the requests that it has given back."""
        self._last = report
        for numbered in (self._on_the_way, self._given_up):
            while numbered and numbered[0][0] <= report.received:
                numbered.popleft()
        if report.returned is None:
            return []
        self.taking_back = False
        returned = map(self.forget, report.returned)
        return [held for held in returned if held is not None]

    def lose(self, *, again: bool) -> list[Held]:
        """The engine has ended: the requests that it had. ``again``: start it anew, if that can be.

        It is ``gone`` where it is not started.
        """
        self.link.close()
        lost = self._forget_all()
        self._earlier = ReplicaStatus(**{name: getattr(self.status, name) for name in _TOTALS})
        self.limits = None
        self.taking_back = False
        self.gone = not again
        self._last = Report(0, [], ReplicaStatus(), wants_requests=False)
        if again:
            self.restarts += 1
            try:
                self._begin_life()
            except OutputError as error:  # the system is short of what a process takes
                logger.warning("%s cannot be started again: %s", self.name, error)
                self.gone = True
        return lost

    def _forget_all(self) -> list[Held]:
        held = list(self.requests.values())
        self.requests.clear()
        self.work = self.num_suspects = 0
        return held

    def _before(self, name: str) -> int:
        before: int = getattr(self._earlier, name)
        return before


def total(parts: list[tuple[str, ReplicaStatus]]) -> ReplicaStatus:
    """The sum of several, with each of them."""
    names = [item.name for item in fields(ReplicaStatus) if item.name not in ("start", "parts")]
    sums = {name: sum(getattr(status, name) for _, status in parts) for name in names}
    return ReplicaStatus(**sums, parts=tuple(parts))
