"""Several engines, each in a process of its own, as one replica. No torch.

An engine that ends costs no row: its requests go to the others, and it is started again. Requests
that it was computing are suspects, of which few are computed at a time: one that is under way when
another engine ends is given up.
"""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

from vlmbatch.errors import EnginesLostError, ErrorCode, RowError, VlmbatchError
from vlmbatch.images.shared_memory import SharedMemory
from vlmbatch.log import logger
from vlmbatch.replicas.member import Held, Link, Member, News, Start, total
from vlmbatch.replicas.messages import (
    Begun,
    EngineLimits,
    Failed,
    FromEngine,
    LogLine,
    Ready,
    Report,
)
from vlmbatch.replicas.replica import Completion, Event, NewTokens, ReplicaStatus, RowFailure
from vlmbatch.replicas.router import Router
from vlmbatch.replicas.sharing import Shared
from vlmbatch.types import Request

MAX_RESTARTS = 3  # of each engine
_MAX_DEATHS = 2  # of engines that a request is under way in

_POLL_SECONDS = 0.1  # that a poll waits for news
_BRIEF_SECONDS = 0.005  # the same while an engine would take requests
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
        self._events: list[Event] = []  # that ``poll`` has not returned yet
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
        self._router = Router(self._members)

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
    def num_unfinished(self) -> int:
        return len(self._held) + len(self._events)

    @property
    def wants_requests(self) -> bool:
        if self._end is not None:
            return True  # ``poll``, which is called then, raises it
        return self._router.wants_requests

    @property
    def fills_step(self) -> bool:
        return True  # an engine gathers what comes to it by itself

    @property
    def status(self) -> ReplicaStatus:
        status = total([(member.name, member.status) for member in self._members])
        return replace(status, waiting=status.waiting + len(self._router.waiting))

    def submit(self, request: Request, *, stream: bool = False) -> None:
        assert request.index not in self._by_index, "two requests of one index"
        shared = Shared(request, self.memory)
        held = Held(next(self._serials), request, stream, shared, self._router.work(request))
        self._held[held.serial] = self._by_index[request.index] = held
        self._dropping = False
        self._router.submit(held)

    def poll(self) -> list[Event]:
        self._take_news(_BRIEF_SECONDS if self.wants_requests else _POLL_SECONDS)
        self._router.hand_out()
        if not self._dropping:
            self._router.balance()
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
        for held in self._router.waiting:
            self._forget(held)
        for member in self._members:
            if member.is_ready:
                member.take_back(_EVERYTHING)

    def expect_no_more(self) -> None:
        self._router.expect_no_more()

    def reset(self) -> None:
        for member in self._members:
            if not member.gone:
                member.reset()
        for each in (self._held, self._by_index, self._events):
            each.clear()
        self._router.clear()

    def close(self) -> None:
        """End every engine. It may be called again."""
        for member in self._members:
            member.link.kill()
        for member in self._members:
            member.link.close()

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

    def _take_returned(self, member: Member, returned: Sequence[Held]) -> None:
        if not self._dropping:
            self._router.returned(member, returned)
            return
        for held in returned:
            self._forget(held)

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
            self._router.answered(len(event.token_ids))
            event.index = index
            self._events.append(event)
        else:
            self._events.append(RowFailure(index, event.error))

    def _forget(self, held: Held) -> None:
        del self._held[held.serial], self._by_index[held.request.index]
        self._router.forget(held)

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
        self._router.forget_images(member)
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
        else:
            self._router.lost(held)
