"""What stands between those who have requests and an engine that answers them. No torch.

The answer loop and the server drive a ``Replica`` and nothing behind it. Requests and all that is
told of them are named by ``Request.index``, so that the engine may be in another process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vlmbatch.errors import RowError
from vlmbatch.start_times import EngineStart
from vlmbatch.types import FinishReason, Request, TokenLogprob


@dataclass(slots=True)  # not frozen: made for every token, in a third of the time
class NewTokens:
    """Tokens of a streamed request that is not finished; the last ones come in ``Completion``."""

    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()  # of each, where the request asks for them


@dataclass(slots=True)  # not frozen: made for every row, in a third of the time
class Completion:
    """The whole answer to a request, up to the token that ended it.

    ``token_ids`` holds what came as ``NewTokens`` too. ``cached_tokens``: of the prompt, found in
    the prefix cache. ``first_token_at``: ``time.monotonic()`` when the first token was known.
    ``text_end``: characters of its text before the stop string that ended it, if one did.
    ``logprobs``: of each token, where the request asks for them. ``choices``: the request's, with
    the log-probability of each. ``others``: the second answer and those behind it, where the
    request asks for several. ``retries``: how often an answer that looped was tried again, and
    ``loops``: whether the last one loops as well. ``prompt_logprobs``: of the prompt's tokens but
    the first, where the request asks for them.
    """

    index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    cached_tokens: int
    first_token_at: float
    text_end: int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    choices: tuple[tuple[str, float], ...] = ()
    others: tuple[Completion, ...] = ()
    retries: int = 0
    loops: bool = False
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class RowFailure:
    """A request that the engine refused, or failed on."""

    index: int
    error: RowError


Event = NewTokens | Completion | RowFailure


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica between two calls of ``poll``.

    Tokens are totals since the start, except those of the pool; so are ``preemptions`` and
    ``answered``. ``start``: of an engine of our own, if it is a single one. ``parts``: of the
    engines that it is the sum of, by name.
    """

    running: int = 0
    waiting: int = 0
    kv_used_tokens: int = 0  # held by running sequences; cached prefixes are free to be taken
    kv_total_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt tokens, those found in the prefix cache
    generation_tokens: int = 0
    preemptions: int = 0
    answered: int = 0  # requests that stand for a row, without those that failed
    start: EngineStart | None = None
    parts: tuple[tuple[str, ReplicaStatus], ...] = ()


class Replica(Protocol):
    """Answers requests. Not thread-safe.

    A request ends once: ``poll`` returns its completion or failure, or it is given up, and
    ``poll`` returns nothing more of it. Its index may then be used again.
    """

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended: while there are any, ``poll`` is to be called."""
        ...

    @property
    def wants_requests(self) -> bool:
        """Whether another request would soon be computed instead of only queueing here."""
        ...

    @property
    def fills_step(self) -> bool:
        """Whether the requests that wait have as many tokens as a step computes."""
        ...

    @property
    def status(self) -> ReplicaStatus:
        """How much there is to do, and what has been done. Not during ``poll``."""
        ...

    def submit(self, request: Request, *, stream: bool = False) -> None:
        """Queue a request; one that cannot be answered fails in a later ``poll``.

        ``stream``: its tokens come as soon as they are known.
        """
        ...

    def poll(self) -> list[Event]:
        """What has come of the requests, in order for each; waits a moment where nothing has."""
        ...

    def cancel(self, index: int) -> None:
        """Give up a request; nothing happens where it has ended already."""
        ...

    def drop_waiting(self) -> None:
        """Give up all requests that nothing has been computed of."""
        ...

    def expect_no_more(self) -> None:
        """All requests are here: they may be taken in the order that ends soonest."""
        ...

    def reset(self) -> None:
        """Give up every request and cached prefix, also after ``poll`` was interrupted."""
        ...


OnBegin = Callable[[list[int]], None]
"""Told of the requests, by index, that the next step computes something of for the first time."""


class EngineReplica(Replica, Protocol):
    """One engine, as the process around it drives it."""

    def take_back(self, most: int) -> list[int]:
        """Give up requests that nothing has been computed of, at most so many: the last ones.

        Returns their indexes.
        """
        ...
