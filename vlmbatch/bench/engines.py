"""What is measured: one engine in this process, or several in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from vlmbatch.config import SessionConfig
from vlmbatch.images.shared_memory import SharedMemory
from vlmbatch.replicas.pool import ReplicaPool
from vlmbatch.replicas.replica import Replica
from vlmbatch.session.engines import EnginePlace
from vlmbatch.session.open import ModelInputs
from vlmbatch.session.replica import loaded_replica
from vlmbatch.stages.answer_loop import GATHER_SECONDS


@dataclass(frozen=True, slots=True)
class BenchEngines:
    """Engines that are loaded. ``kv_cache_tokens``: of each.

    ``memory``: what images are in where engines have processes of their own. ``ranks``: processes
    that divide the model of each.
    """

    replica: Replica
    number: int
    kv_cache_tokens: int
    devices: tuple[torch.device, ...]
    memory: SharedMemory | None = None
    ranks: int = 1


@contextmanager
def bench_engines(
    session: SessionConfig,
    inputs: ModelInputs,
    places: Sequence[EnginePlace],
    device: torch.device,
) -> Iterator[BenchEngines]:
    """Load them at ``places``, or where there are none a single one on ``device``."""
    gpus = [gpu for place in places for gpu in place.gpus]
    devices = [torch.device("cuda", gpu) for gpu in gpus] or [device]
    with loaded_replica(session, inputs, places, gather_seconds=GATHER_SECONDS) as replica:
        yield BenchEngines(
            replica,
            len(places) or 1,
            replica.limits.kv_cache_tokens,
            tuple(devices),
            replica.memory if isinstance(replica, ReplicaPool) else None,
            session.engine.tensor_parallel if places else 1,
        )
