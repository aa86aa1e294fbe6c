"""Which of several engines computes which request. No torch.

Rows that share an image go to the same engine, as its caches hold it; all others go where the least
is left to do. When the last row is here, an engine that has begun with all that it has gets some of
what waits elsewhere. Of requests that an engine may have died of, few are computed at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from vlmbatch.replicas.image_homes import ImageHomes
from vlmbatch.replicas.member import Held, Member
from vlmbatch.replicas.messages import ExpectNoMore
from vlmbatch.types import Request

MAX_SUSPECTS = 16  # under way in one engine: so many rows may share a culprit's end

_QUEUE = 64  # requests that may come while no engine is ready
_KNOWN_IMAGES = 4096  # of each engine, the last ones


class Router:
    """Hands requests to ``members``, and holds those that none of them has been given."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._homes = ImageHomes(_KNOWN_IMAGES * len(members))
        self._queue: deque[Held] = deque()  # that no engine has been given, or has begun
        self._suspects: deque[Held] = deque()  # that no engine has been given again
        self._mean_answer: float | None = None  # tokens
        self._no_more = False

    @property
    def waiting(self) -> list[Held]:
        """The requests that no engine has."""
        return [*self._queue, *self._suspects]

    @property
    def wants_requests(self) -> bool:
        if not any(member.is_ready for member in self._members):
            return len(self._queue) < _QUEUE
        return any(member.wants_requests for member in self._members)

    def work(self, request: Request) -> int:
        """Tokens that it takes, as far as can be guessed from the answers so far."""
        answer = request.sampling.max_tokens
        if self._mean_answer is not None:
            answer = min(answer, round(self._mean_answer))
        return len(request.token_ids) + answer

    def answered(self, num_tokens: int) -> None:
        """Take in the length of an answer."""
        mean = self._mean_answer
        self._mean_answer = num_tokens if mean is None else 0.98 * mean + 0.02 * num_tokens

    def submit(self, held: Held) -> None:
        """Hand over a request that has just come: there may be more."""
        self._no_more = False
        self._route(held)

    def returned(self, member: Member, requests: Sequence[Held]) -> None:
        """``member`` has given back what it has not begun: others get it."""
        for held in requests:
            self._route(held, besides=member)
        if requests and self._no_more:
            self.expect_no_more()

    def lost(self, held: Held) -> None:
        """The engine that had the request has ended."""
        (self._suspects if held.is_suspect else self._queue).append(held)

    def forget(self, held: Held) -> None:
        """The request has ended."""
        for waiting in (self._queue, self._suspects):
            if held in waiting:
                waiting.remove(held)

    def forget_images(self, member: Member) -> None:
        """The caches of ``member`` are empty."""
        self._homes.forget(member)

    def hand_out(self) -> None:
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

    def balance(self) -> None:
        """At the end, ask the engine where most waits to give some of it back."""
        if not self._no_more:
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

    def expect_no_more(self) -> None:
        """The last request is here."""
        self._no_more = True
        for member in self._members:
            if member.is_ready:
                member.send(ExpectNoMore())

    def clear(self) -> None:
        """Every request has ended, and caches are empty."""
        self._queue.clear()
        self._suspects.clear()
        self._homes.clear()

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
