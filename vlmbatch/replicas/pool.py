"""Several engines, each in a process of its own, as one replica. No torch.

Rows that share an image go to the same engine, as its caches hold it; all others go where the least
is left to do. When the last row is here, an engine that has begun with all that it has gets some of
what waits elsewhere.

An engine that ends costs no row: its requests go to the others, and it is started again. Requests
that it was computing are suspects, of which few are computed at a time: one that is under way when
another engine ends is given up.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count

from vlmbatch.errors import EnginesLostError, ErrorCode, RowError, VlmbatchError
from vlmbatch.images.shared_memory import SharedMemory
from vlmbatch.log import logger
from vlmbatch.replicas.image_homes import ImageHomes
from vlmbatch.replicas.member import Held, Link, Member, News, Start, total
from vlmbatch.replicas.messages import (
    Begun,
    EngineLimits,
    ExpectNoMore,
    Failed,
    FromEngine,
    LogLine,
    Ready,
    Report,
)
from vlmbatch.replicas.replica import Completion, Event, NewTokens, ReplicaStatus, RowFailure
from vlmbatch.replicas.sharing import Shared
from vlmbatch.types import Request

MAX_RESTARTS = 3  # of each engine
MAX_SUSPECTS = 16  # under way in one engine: so many rows may share a culprit's end
_MAX_DEATHS = 2  # of engines that a request is under way in

_POLL_SECONDS = 0.1  # that a poll waits for news
_BRIEF_SECONDS = 0.005  # the same while an engine would take requests
_QUEUE = 64  # requests that may come while no engine is ready
_KNOWN_IMAGES = 4096  # of each engine, the last ones
_EVERYTHING = 2**31


class ReplicaPool:
    """A ``Replica`` of several engines, which ``engines`` starts, by name; to be closed.

    ``memory``: what the engines map. An image that lies elsewhere is copied there.
    ``wait_ready`` is called first.
    """

    def __init__(self, engines: Mapping[str, Start], memory: SharedMemory) -> None:
        assert engines
        self.memory = memory
        self._news: News = queue.SimpleQueue()
        self._serials = count()
        self._held: dict[int, Held] = {}  # by serial number
        self._by_index: dict[int, Held] = {}
        self._homes = ImageHomes(_KNOWN_IMAGES * len(engines))
        self._queue: deque[Held] = deque()  # that no engine has been given, or has begun
        self._suspects: deque[Held] = deque()  # that no engine has been given again
        self._events: list[Event] = []  # that ``poll`` has not returned yet
        self._mean_answer: float | None = None  # tokens
        self._no_more = False
        self._dropping = False  # what waits is given up
        self._end: BaseException | None = None  # why no more is answered
        self._by_link: dict[Link, Member] = {}
        self._members: list[Member] = []
        try:
            for name, start in engines.items():
                self._members.append(Member(name, start, self._news))
                self._by_link[self._members[-1].link] = self._members[-1]
        except BaseException:
            self.close()
            raise

    def wait_ready(self) -> None:
        """Wait until every engine is loaded, or is not started again.

        Raises what an engine raised while it was loaded.

        Raises:
            EnginesLostError: no engine could be started.
        """
        while not all(member.is_ready or member.gone for member in self._members):
            self._take_news(_POLL_SECONDS)
            if self._end is not None:
                raise self._end

    @property
    def limits(self) -> EngineLimits:
        """What every engine takes."""
        limits = [member.limits for member in self._members if member.limits is not None]
        return min(limits, key=lambda each: each.kv_cache_tokens)

    @property
    def num_engines(self) -> int:
        return len(self._members)

    @property
    def num_unfinished(self) -> int:
        return len(self._held) + len(self._events)

    @property
    def wants_requests(self) -> bool:
        if self._end is not None:
            return True  # ``poll``, which is called then, raises it
        if not any(member.is_ready for member in self._members):
            return len(self._queue) < _QUEUE
        return any(member.wants_requests for member in self._members)

    @property
    def fills_step(self) -> bool:
        return True  # an engine gathers what comes to it by itself

    @property
    def status(self) -> ReplicaStatus:
        status = total([(member.name, member.status) for member in self._members])
        return replace(status, waiting=status.waiting + len(self._queue) + len(self._suspects))

    def submit(self, request: Request, *, stream: bool = False) -> None:
        assert request.index not in self._by_index, "two requests of one index"
        shared = Shared(request, self.memory)
        held = Held(next(self._serials), request, stream, shared, self._work(request))
        self._held[held.serial] = self._by_index[request.index] = held
        self._no_more = self._dropping = False
        self._route(held)

    def poll(self) -> list[Event]:
        self._take_news(_BRIEF_SECONDS if self.wants_requests else _POLL_SECONDS)
        self._hand_out()
        self._balance()
        events, self._events = self._events, []
        if not events and self._end is not None:
            raise self._end
        return events

    def cancel(self, index: int) -> None:
        self._events = [event for event in self._events if event.index != index]
        held = self._by_index.get(index)
        if held is None:
            return
        self._forget(held)
        for member in self._members:
            member.cancel(held)

    def drop_waiting(self) -> None:
        self._dropping = True
        for held in [*self._queue, *self._suspects]:
            self._forget(held)
        for member in self._members:
            if member.is_ready:
                member.take_back(_EVERYTHING)

    def expect_no_more(self) -> None:
        self._no_more = True
        for member in self._members:
            if member.is_ready:
                member.send(ExpectNoMore())

    def reset(self) -> None:
        for member in self._members:
            if not member.gone:
                member.reset()
        for each in (self._held, self._by_index, self._queue, self._suspects, self._events):
            each.clear()
        self._homes.clear()

    def close(self) -> None:
        """End every engine. It may be called again."""
        for member in self._members:
            member.link.kill()
        for member in self._members:
            member.link.close()

    # Where requests go.

    def _work(self, request: Request) -> int:
        answer = request.sampling.max_tokens
        if self._mean_answer is not None:
            answer = min(answer, round(self._mean_answer))
        return len(request.token_ids) + answer

    def _route(self, held: Held, besides: Member | None = None) -> None:
        member = self._choose(held, besides)
        if member is None:
            self._queue.append(held)
            return
        self._homes.remember(held.shared.images, member)
        member.submit(held)

    def _choose(self, held: Held, besides: Member | None) -> Member | None:
        """The engine that has an image of the request, unless it is full; else the least busy.

        ``besides``: not this one, where there is another.
        """
        ready = [member for member in self._members if member.is_ready]
        ready = [member for member in ready if member is not besides] or ready
        wanting = [member for member in ready if member.wants_requests] or ready
        home = self._homes.find(held.shared.images, wanting)
        return home or min(wanting, key=lambda member: member.work, default=None)

    def _hand_out(self) -> None:
        """Give engines what waits for one: rows of engines that ended, and few suspects."""
        moved = False
        while self._queue and any(member.wants_requests for member in self._members):
            self._route(self._queue.popleft())
            moved = True
        for member in self._members:
            while self._suspects and member.is_ready and member.num_suspects < MAX_SUSPECTS:
                member.submit(self._suspects.popleft())
                moved = True
        if moved and self._no_more:
            self.expect_no_more()  # for those that came after it was said

    def _balance(self) -> None:
        """At the end, ask the engine where most waits to give some of it back."""
        if not self._no_more or self._dropping:
            return
        hungry = [member for member in self._members if member.is_hungry]
        busy = [each for each in self._members if each.is_ready and each not in hungry]
        if not hungry or not busy or any(member.taking_back for member in self._members):
            return
        donor = max(busy, key=lambda member: member.num_waiting)
        # The last one is better off where it is, unless another engine has nothing at all.
        spare = donor.num_waiting - all(member.requests for member in hungry)
        if spare > 0:
            donor.take_back(max(1, spare * len(hungry) // (len(hungry) + 1)))

    # What engines tell.

    def _take_news(self, timeout: float) -> None:
        while True:
            try:
                link, message = self._news.get(timeout > 0, timeout)
            except queue.Empty:
                return
            member = self._by_link.get(link)
            if member is not None:  # else of a life that is over
                self._take(member, message)
            timeout = 0.0

    def _take(self, member: Member, message: FromEngine) -> None:
        if isinstance(message, Report):
            self._take_returned(member, member.take(message))
            for event in message.events:
                self._tell(member, event)
        elif isinstance(message, Begun):
            for serial in message.serials:
                if serial in member.requests:
                    member.requests[serial].begun = True
        elif isinstance(message, LogLine):
            logger.log(message.level, "%s: %s", member.name, message.message)
        elif isinstance(message, Ready):
            member.ready(message)
        elif isinstance(message, Failed):
            self._take_failure(member, message)
        else:
            self._lose(member, message.cause)

    def _take_returned(self, member: Member, returned: Iterable[Held]) -> None:
        moved = False
        for held in returned:
            if self._dropping:
                self._forget(held)
            else:
                self._route(held, besides=member)
                moved = True
        if moved and self._no_more:
            self.expect_no_more()

    def _tell(self, member: Member, event: Event) -> None:
        held = self._held.get(event.index)
        if held is None:  # given up meanwhile
            return
        index = held.request.index
        if isinstance(event, NewTokens):
            held.told += len(event.token_ids)
            self._events.append(NewTokens(index, event.token_ids, event.logprobs))
            return
        self._forget(held)
        member.forget(held.serial)
        if isinstance(event, Completion):
            length, mean = len(event.token_ids), self._mean_answer
            self._mean_answer = length if mean is None else 0.98 * mean + 0.02 * length
            event.index = index
            self._events.append(event)
        else:
            self._events.append(RowFailure(index, event.error))

    def _forget(self, held: Held) -> None:
        del self._held[held.serial], self._by_index[held.request.index]
        for waiting in (self._queue, self._suspects):
            if held in waiting:
                waiting.remove(held)

    # Engines that end.

    def _take_failure(self, member: Member, failed: Failed) -> None:
        error = failed.error
        logger.debug("%s failed:\n%s", member.name, failed.details)
        if not member.was_ready or (member.is_ready and isinstance(error, VlmbatchError)):
            # What was given cannot be used, or answers as a whole cannot be had.
            self._end = error
        else:
            self._lose(member, f"{type(error).__name__}: {error}")

    def _lose(self, member: Member, cause: str) -> None:
        del self._by_link[member.link]
        lost = member.lose(again=member.restarts < MAX_RESTARTS)
        if member.gone:
            what_now = f"it was started again {member.restarts} times and is given up"
        else:
            what_now = f"it is started again, {member.restarts} of {MAX_RESTARTS} times"
            self._by_link[member.link] = member
        logger.warning("%s has ended (%s): %s", member.name, cause, what_now)
        self._homes.forget(member)
        for held in lost:
            self._take_lost(held, cause)
        if all(each.gone for each in self._members):
            self._end = EnginesLostError(f"no engine is left: the last ended with: {cause}")

    def _take_lost(self, held: Held, cause: str) -> None:
        held.deaths += held.begun
        if held.told or held.deaths == _MAX_DEATHS:
            self._forget(held)
            said = (
                f"the engine ended after {held.told} tokens of the answer were sent ({cause})"
                if held.told
                else f"{_MAX_DEATHS} engines ended while they computed this row ({cause})"
            )
            self._events.append(
                RowFailure(held.request.index, RowError(ErrorCode.ENGINE_ERROR, said))
            )
        elif self._dropping and not held.begun:
            self._forget(held)
        elif held.deaths:
            self._suspects.append(held)
        else:
            self._queue.append(held)
