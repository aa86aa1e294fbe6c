"""What the endpoints of a server share: settings, what answers, and how much it may have to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.openai.errors import ApiError
from vlmbatch.serve.config import ServeConfig
from vlmbatch.serve.engine_thread import EngineThread
from vlmbatch.serve.metrics import ServerMetrics
from vlmbatch.serve.preparation import Preparation


class RequestSlots:
    """How many requests may be worked on at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.in_use = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold one of them.

        Raises:
            ApiError: 429, all are taken.
        """
        if self.in_use >= self._limit:
            raise ApiError(
                429,
                f"the server works on {self._limit} requests already "
                "(--max-concurrent-requests); try again",
                "rate_limit_error",
                code="rate_limit_exceeded",
            )
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1


@dataclass(frozen=True, slots=True)
class Service:
    """What answers requests."""

    config: ServeConfig
    tokenizer: Tokenizer
    max_model_len: int
    preparation: Preparation
    engine: EngineThread
    slots: RequestSlots
    metrics: ServerMetrics
