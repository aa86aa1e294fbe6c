"""Features computed and written, full batches of images at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from itertools import count

from vlmbatch.errors import EnginesLostError, RowError
from vlmbatch.jobs.named_images import Outcome
from vlmbatch.output.feature_folder import FeatureFolder
from vlmbatch.replicas.replica import Event, Replica, RowFailure
from vlmbatch.replicas.tower import batch_request
from vlmbatch.types import PixelImage


class TowerWriter:
    """Has the features of images computed and written, full batches of them at a time.

    ``start`` loads what does it, when the first image needs it.
    """

    def __init__(
        self,
        start: Callable[[], AbstractContextManager[Replica]],
        folder: FeatureFolder,
        batch_tokens: int,
    ) -> None:
        """``batch_tokens``: image tokens of a full batch."""
        self._start = start
        self._folder = folder
        self._batch_tokens = batch_tokens
        self._started = ExitStack()
        self._replica: Replica | None = None
        self._batch: dict[str, PixelImage] = {}  # by name
        self._num_tokens = 0  # of the batch
        self._indexes = count()
        self._under_way: dict[int, list[str]] = {}  # names, by the index of their request
        self._unfinished: set[str] = set()  # the same names
        self.num_encoded = 0

    def add(self, outcomes: list[Outcome]) -> None:
        """Take the images that need features; full batches are handed over at once."""
        for outcome in outcomes:
            if isinstance(outcome, RowError) or outcome.pixels is None:
                continue
            name = outcome.name
            if name in self._batch or name in self._unfinished or self._folder.has(name):
                continue
            num_tokens = outcome.pixels.grid.num_tokens
            if self._batch and self._num_tokens + num_tokens > self._batch_tokens:
                self._encode()
            self._batch[name] = outcome.pixels
            self._num_tokens += num_tokens
            if self._num_tokens >= self._batch_tokens:
                self._encode()

    def finish(self) -> None:
        """Compute what is left, and wait until all is durable."""
        if self._batch:
            self._encode()
        if self._replica is not None:
            self._replica.expect_no_more()
            while self._replica.num_unfinished:
                self._take(self._replica.poll())

    @property
    def shares(self) -> dict[str, dict[str, int]]:
        """How many images each of several engines has computed."""
        parts = () if self._replica is None else self._replica.status.parts
        return {name: {"images": part.answered} for name, part in parts}

    def close(self) -> None:
        self._started.close()

    def _encode(self) -> None:
        """Hand a batch over, and wait until another one would be taken."""
        replica = self._replica
        if replica is None:
            replica = self._replica = self._started.enter_context(self._start())
        index = next(self._indexes)
        replica.submit(batch_request(index, self._batch))
        self._under_way[index] = list(self._batch)
        self._unfinished.update(self._batch)
        self._batch.clear()
        self._num_tokens = 0
        while not replica.wants_requests:
            self._take(replica.poll())

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, RowFailure):
                raise EnginesLostError(
                    f"{event.error.message}. What is done is kept: run the same command again to "
                    "resume"
                )
            names = self._under_way.pop(event.index)
            self._unfinished.difference_update(names)
            self.num_encoded += len(names)
