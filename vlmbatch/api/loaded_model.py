"""A model that is loaded, with all that prepares its rows: one call at a time."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from vlmbatch.api.answering import answer_rows
from vlmbatch.api.loader import HeldImageLoader
from vlmbatch.api.outputs import RequestOutput
from vlmbatch.api.requests import RowSource
from vlmbatch.config import SessionConfig
from vlmbatch.errors import UsageError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.images.loading.shared_loader import SharedLoader
from vlmbatch.replicas.pool import ReplicaPool
from vlmbatch.session.engines import engine_places
from vlmbatch.session.host_memory import HostMemory
from vlmbatch.session.load import composed, image_workers
from vlmbatch.session.open import open_images, open_model
from vlmbatch.session.replica import loaded_replica
from vlmbatch.stages.answer_loop import GATHER_SECONDS

if TYPE_CHECKING:
    from vlmbatch.images.loading.loader import ImageLoader
    from vlmbatch.replicas.replica import Replica
    from vlmbatch.session.replica import LoadedReplica


class LoadedModel:
    """Loads the model of ``config`` and answers rows with it, until it is closed or collected.

    Raises:
        ConfigError: an option contradicts the model, or asks for what is not here.
        CheckpointError: the model cannot be found, fetched or read.
    """

    def __init__(self, config: SessionConfig) -> None:
        inputs = open_model(config)
        self.processor = inputs.processor
        self._model = inputs.model
        self._memory = HostMemory.divide(config.host_memory)
        places = engine_places(config.engine, "one")
        with ExitStack() as stack:
            replica = stack.enter_context(
                loaded_replica(
                    *(config, inputs, places),
                    gather_seconds=GATHER_SECONDS,
                    owns_process=False,
                )
            )
            self._replica: LoadedReplica | None = replica  # None once it is closed
            self._on_cpu = replica.limits.on_cpu
            num_workers = image_workers(config, len(places) or 1)
            self._prepare_threads = max(2, 2 * num_workers)  # most of them wait for an image
            gpu = places[0].first_gpu if places else None
            self._images: ImageLoader = HeldImageLoader(
                self.processor, partial(open_images, config, inputs, num_workers, gpu)
            )
            if isinstance(replica, ReplicaPool) and not isinstance(inputs.model, HfConfig):
                self._images = SharedLoader(self._images, replica.memory)
            stack.callback(self._images.close)
            self._end = weakref.finalize(self, stack.pop_all().close)
        self._in_use = threading.Lock()
        self._calls: weakref.WeakSet[Generator[RequestOutput]] = weakref.WeakSet()

    def answer(
        self, source: RowSource, *, in_order: bool, strict: bool
    ) -> Generator[RequestOutput]:
        """Yield answers of rows: ``in_order``, or as they are finished.

        Raises:
            RowError: with ``strict``, the first error that comes.
            UsageError: an earlier call is unfinished, or the model is closed.
        """
        call = self._call(source, in_order=in_order, strict=strict)
        self._calls.add(call)
        return call

    def close(self) -> None:
        """End unfinished calls and free what the model holds. It may be called again.

        Raises:
            UsageError: another thread is in the middle of a call.
        """
        for call in list(self._calls):
            try:
                call.close()
            except ValueError as error:  # the generator is running
                raise _busy() from error
        self._end()
        if self._replica is None:
            return
        self._replica = None
        gc.collect()
        if not self._on_cpu:
            import torch

            torch.cuda.empty_cache()

    def _call(self, source: RowSource, *, in_order: bool, strict: bool) -> Generator[RequestOutput]:
        with self._sole_use() as replica:
            yield from answer_rows(
                source.rows(),
                replica,
                self.processor,
                self._images,
                self._prepare_threads,
                self._memory,
                in_order=in_order,
                strict=strict,
            )
        if source.failure is not None:
            raise source.failure

    @contextmanager
    def _sole_use(self) -> Iterator[Replica]:
        """What answers, for one call at a time, from whichever thread."""
        if not self._in_use.acquire(blocking=False):
            raise _busy()
        try:
            if self._replica is None:
                raise UsageError("this LLM is closed")
            yield composed(self._replica, self._model, self.processor.tokenizer)
        finally:
            self._in_use.release()


def _busy() -> UsageError:
    return UsageError(
        "this LLM is busy with another call: finish or close() the iterator that it returned, and "
        "call from one thread at a time"
    )
