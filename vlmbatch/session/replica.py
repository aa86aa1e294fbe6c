"""What answers, wherever it runs: loaded for the Python API, the server and the benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from vlmbatch.config import SessionConfig
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.images.shared_memory import SharedMemory
from vlmbatch.replicas.local import LocalReplica
from vlmbatch.session.engines import EnginePlace, several_engines
from vlmbatch.session.load import freeze_loaded, load_engine, load_with_transformers
from vlmbatch.session.open import ModelInputs

if TYPE_CHECKING:
    from vlmbatch.hf.replica import HfReplica
    from vlmbatch.replicas.pool import ReplicaPool

    LoadedReplica = LocalReplica | HfReplica | ReplicaPool


@contextmanager
def loaded_replica(
    config: SessionConfig,
    inputs: ModelInputs,
    places: Sequence[EnginePlace],
    *,
    gather_seconds: float = 0.0,
    owns_process: bool = True,
) -> Iterator[LoadedReplica]:
    """Engines at ``places``, in processes of their own; or where there are none, one in this.

    ``gather_seconds``: see ``several_engines``. ``owns_process``: what is in this process is ours
    alone, so that its garbage collection may be told of it.

    Raises:
        UsageError: as by ``load_engine`` and ``load_with_transformers``.
        EnginesLostError: as by ``several_engines``.
    """
    if places:
        with (
            closing(SharedMemory()) as memory,
            several_engines(
                config, inputs, tuple(places), memory, gather_seconds=gather_seconds
            ) as pool,
        ):
            yield pool
    elif isinstance(inputs.model, HfConfig):
        with closing(load_with_transformers(config, inputs)) as replica:
            yield replica
    else:
        engine = load_engine(config, inputs)
        if owns_process:
            freeze_loaded(engine)
        yield LocalReplica(engine, inputs.processor.tokenizer)
