"""Requests that are answered by several of our own, on a replica that knows nothing of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Protocol

from vlmbatch.errors import RowError
from vlmbatch.replicas.replica import Completion, Event, Replica, ReplicaStatus, RowFailure
from vlmbatch.types import Request

Parts = Mapping[Hashable, Request]
"""Requests by a name that tells them apart; their indexes are replaced by our own."""


class Composition(Protocol):
    """How one request is answered by several."""

    def first(self) -> Parts:
        """What is asked at first."""
        ...

    def take(self, name: Hashable, completion: Completion) -> Parts | Completion:
        """What one of them has come to: what is asked next, or the answer. Nothing more is asked
        where others are awaited."""
        ...

    def failure(self, name: Hashable, error: RowError) -> RowError:
        """The request's error where one of the parts has failed."""
        ...


Compose = Callable[[Request], Composition | None]
"""How a request is answered; None where it is one that the replica answers by itself. Raises
``RowError`` where there is no answering it."""


@dataclass(slots=True)
class _UnderWay:
    """A request that has not ended. ``asked``: names of its parts under way, by our indexes."""

    request: Request
    composition: Composition
    asked: dict[int, Hashable] = field(default_factory=dict)


class ComposedReplica:
    """A ``Replica`` of requests that the first of ``kinds`` which knows them divides."""

    def __init__(self, replica: Replica, kinds: Sequence[Compose]) -> None:
        self._replica = replica
        self._kinds = kinds
        self._indexes = count(-1, -1)  # of our own requests: others have none below 0
        self._under_way: dict[int, _UnderWay] = {}  # by the request's index
        self._owner: dict[int, _UnderWay] = {}  # by the indexes of our own requests
        self._refused: list[RowFailure] = []

    @property
    def num_unfinished(self) -> int:
        return self._replica.num_unfinished + len(self._refused)

    @property
    def wants_requests(self) -> bool:
        return self._replica.wants_requests

    @property
    def fills_step(self) -> bool:
        return self._replica.fills_step

    @property
    def status(self) -> ReplicaStatus:
        return self._replica.status

    def submit(self, request: Request, *, stream: bool = False) -> None:
        assert request.index >= 0, "a part of another composed replica's"
        try:
            composition = self._composition(request)
        except RowError as error:
            self._refused.append(RowFailure(request.index, error))
            return
        if composition is None:
            self._replica.submit(request, stream=stream)
            return
        state = self._under_way[request.index] = _UnderWay(request, composition)
        self._ask(state, composition.first(), is_row=True)

    def poll(self) -> list[Event]:
        events: list[Event] = [*self._refused]
        self._refused.clear()
        for event in self._replica.poll():
            state = self._owner.pop(event.index, None)
            if state is None:
                if event.index >= 0:  # else of a request that failed in this very step
                    events.append(event)
                continue
            name, index = state.asked.pop(event.index), state.request.index
            if isinstance(event, RowFailure):
                self.cancel(index)
                events.append(RowFailure(index, state.composition.failure(name, event.error)))
                continue
            assert isinstance(event, Completion), "parts are not streamed"
            taken = state.composition.take(name, event)
            if isinstance(taken, Completion):
                del self._under_way[index]
                events.append(taken)
            else:
                self._ask(state, taken)
        return events

    def cancel(self, index: int) -> None:
        state = self._under_way.pop(index, None)
        if state is None:
            self._refused = [failure for failure in self._refused if failure.index != index]
            self._replica.cancel(index)
            return
        for own in state.asked:
            self._owner.pop(own, None)
            self._replica.cancel(own)

    def drop_waiting(self) -> None:
        self._replica.drop_waiting()

    def expect_no_more(self) -> None:
        self._replica.expect_no_more()

    def reset(self) -> None:
        self._under_way.clear()
        self._owner.clear()
        self._refused.clear()
        self._replica.reset()

    def _composition(self, request: Request) -> Composition | None:
        return next((found for kind in self._kinds if (found := kind(request)) is not None), None)

    def _ask(self, state: _UnderWay, parts: Parts, is_row: bool = False) -> None:
        """``is_row``: the first of them stands for the row where rows are counted."""
        for name, part in parts.items():
            index = next(self._indexes)
            state.asked[index] = name
            self._owner[index] = state
            self._replica.submit(replace(part, index=index, is_row=is_row))
            is_row = False
