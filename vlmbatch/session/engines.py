"""Where engines run: one in this process, or several in processes of their own behind one face."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from vlmbatch.config import EngineConfig, SessionConfig
from vlmbatch.engine.rank import ALONE, Rank
from vlmbatch.errors import ConfigError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.images.shared_memory import SharedMemory
from vlmbatch.replicas.local import LocalReplica
from vlmbatch.replicas.messages import EngineLimits
from vlmbatch.replicas.replica import OnBegin
from vlmbatch.session.cores import default_cpu_threads, may_have_cuda
from vlmbatch.session.gpu_context import make_context_early
from vlmbatch.session.load import freeze_loaded, load_engine, load_with_transformers
from vlmbatch.session.open import ModelInputs, open_model

if TYPE_CHECKING:
    from vlmbatch.hf.replica import HfReplica
    from vlmbatch.replicas.pool import ReplicaPool
    from vlmbatch.replicas.process import Load

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class EnginePlace:
    """Where one of several engines runs, or one that is divided.

    ``gpus``: which of those that this process can see, one of each rank that divides the model.
    ``variables``: the environments of the ranks' processes.
    """

    name: str
    gpus: tuple[int, ...] = ()
    variables: tuple[Mapping[str, str], ...] = ({},)

    @property
    def first_gpu(self) -> int | None:
        """The GPU of the first rank."""
        return self.gpus[0] if self.gpus else None


def engine_places(config: EngineConfig, default: Literal["all", "one"]) -> tuple[EnginePlace, ...]:
    """Where engines run; none: there is a single one, in this process.

    ``default``: how many GPUs are used where ``config`` does not say; "one" stands for as many as
    a model is divided over.

    Raises:
        ConfigError: there are no such GPUs here, they are not a multiple of those that a model is
            divided over, or ``config`` has replicas and there is a GPU.
    """
    if config.device == "cpu" or not may_have_cuda():
        _check_no_gpus_wanted(config)
        return _replicas(config)
    ranks = config.tensor_parallel
    if config.gpus is None and config.replicas is None and default == "one" and ranks == 1:
        return ()
    visible = visible_gpus()
    if not visible and config.device == "auto":
        _check_no_gpus_wanted(config)
        return _replicas(config)
    if config.replicas is not None:
        raise ConfigError(
            f"--replicas {config.replicas} is for CPUs, and there are GPUs here: choose among them "
            "with --gpus, or add --device cpu"
        )
    gpus = config.gpus or ("all" if default == "all" else str(ranks))
    numbers = _divided(_wanted(gpus, len(visible), ranks), ranks, config.gpus)
    if len(numbers) < 2:
        return ()
    groups = [tuple(numbers[first : first + ranks]) for first in range(0, len(numbers), ranks)]
    return tuple(
        EnginePlace(
            f"GPU{'s' * (ranks > 1)} {'+'.join(map(str, group))}",
            group,
            tuple({_VISIBLE: visible[number]} for number in group),
        )
        for group in groups
    )


def visible_gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` calls each of the GPUs that this process may use.

    They are counted by the driver's library: no memory of theirs is taken.
    """
    import torch

    number = torch.cuda.device_count()
    named = os.environ.get(_VISIBLE)
    if named is None:
        return [str(index) for index in range(number)]
    return [name.strip() for name in named.split(",")][:number]


def _wanted(gpus: str, number: int, ranks: int) -> range | tuple[int, ...]:
    """Which of ``number`` visible GPUs are to be used, by engines of ``ranks`` each."""
    there = f"there {'is' if number == 1 else 'are'} {number} here"
    if _VISIBLE in os.environ:
        there += f", as {_VISIBLE}={os.environ[_VISIBLE]} says"
    if ranks > number:
        raise ConfigError(f"--tensor-parallel {ranks} takes as many GPUs, and {there}")
    if gpus == "all":
        return range(number)
    wanted = tuple(map(int, gpus.split(",")))
    if len(wanted) == 1:
        if wanted[0] > number:
            raise ConfigError(f"--gpus {gpus}: {there}")
        return range(wanted[0])
    if _VISIBLE in os.environ:
        raise ConfigError(
            f"--gpus {gpus} with {_VISIBLE}={os.environ[_VISIBLE]}: name GPUs in one of them, and "
            "give --gpus all or a number with the other"
        )
    if max(wanted) >= number:
        raise ConfigError(f"--gpus {gpus}: {there}, of which the last is {number - 1}")
    return wanted


def _divided(
    numbers: range | tuple[int, ...], ranks: int, asked_for: str | None
) -> range | tuple[int, ...]:
    """As many of the GPUs ``numbers`` as engines of ``ranks`` each take: all that were named."""
    left_over = len(numbers) % ranks
    if left_over and asked_for not in (None, "all"):
        raise ConfigError(
            f"--gpus {asked_for} with --tensor-parallel {ranks}: {len(numbers)} "
            f"{'GPU is' if len(numbers) == 1 else 'GPUs are'} no multiple of {ranks}"
        )
    return numbers[: len(numbers) - left_over]


def _check_no_gpus_wanted(config: EngineConfig) -> None:
    if config.gpus not in (None, "all"):
        raise ConfigError(
            f"--gpus {config.gpus}: there is no GPU here that can be used; `vlmbatch doctor` says "
            "what is missing, and --replicas N runs several engines on a CPU"
        )


def _replicas(config: EngineConfig) -> tuple[EnginePlace, ...]:
    number, ranks = config.replicas or 1, config.tensor_parallel
    if number == ranks == 1:
        return ()
    variables: tuple[Mapping[str, str], ...] = ({},) * ranks
    return tuple(EnginePlace(f"replica {index}", variables=variables) for index in range(number))


@contextmanager
def several_engines(
    config: SessionConfig,
    inputs: ModelInputs,
    places: tuple[EnginePlace, ...],
    memory: SharedMemory,
    *,
    gather_seconds: float = 0.0,
) -> Iterator[ReplicaPool]:
    """Load an engine at each of ``places``, and have them behind one face.

    ``memory``: what their images are in. ``gather_seconds``: see ``Settings``.

    Raises:
        UsageError: as by ``load_engine``.
        EnginesLostError: no process could be kept running until its engine was loaded.
    """
    config = in_processes(config, places)
    load: Load
    if isinstance(inputs.model, HfConfig):
        load = partial(load_hf_for_pool, _of_transformers(config, inputs))
    else:
        model = ModelInputs(inputs.folder, inputs.model, inputs.processor)
        load = partial(load_for_pool, config, model)
    with started_pool(load, places, memory, gather_seconds=gather_seconds) as pool:
        yield pool


def in_processes(config: SessionConfig, places: tuple[EnginePlace, ...]) -> SessionConfig:
    """What each of the processes at ``places`` is told: it is one, with its share of the cores."""
    settings = config.engine
    if settings.cpu_threads is None and (threads := default_cpu_threads()) is not None:
        num_ranks = sum(len(place.variables) for place in places)
        settings = replace(settings, cpu_threads=max(1, threads // num_ranks))
    return replace(config, engine=replace(settings, gpus=None, replicas=None))


@contextmanager
def started_pool(
    load: Load,
    places: tuple[EnginePlace, ...],
    memory: SharedMemory,
    *,
    gather_seconds: float = 0.0,
) -> Iterator[ReplicaPool]:
    """What ``load`` makes in a process at each of ``places``, once all of them are ready.

    Raises:
        UsageError: as ``load`` does.
        EnginesLostError: no process could be kept running until it was ready.
    """
    from vlmbatch.replicas.pool import ReplicaPool
    from vlmbatch.replicas.process import EngineProcess

    starts = {
        place.name: partial(
            EngineProcess,
            load,
            memory,
            gather_seconds=gather_seconds,
            variables=place.variables[0],
            follower_variables=place.variables[1:],
        )
        for place in places
    }
    pool = ReplicaPool(starts, memory)
    try:
        pool.wait_ready()
        yield pool
    finally:
        pool.close()


def load_for_pool(
    config: SessionConfig, inputs: ModelInputs, on_begin: OnBegin, rank: Rank
) -> tuple[LocalReplica, EngineLimits]:
    """Load one of several engines, in the process that is to run it, or ``rank`` of one."""
    make_context_early(config.engine)
    engine = load_engine(config, inputs, rank)
    freeze_loaded(engine)
    replica = LocalReplica(engine, inputs.processor.tokenizer, on_begin)
    return replica, replica.limits


def _of_transformers(config: SessionConfig, inputs: ModelInputs) -> SessionConfig:
    """The same model again: a processor of transformers cannot be sent to another process."""
    engine = replace(config.engine, engine="transformers")
    return replace(config, model=str(inputs.folder), revision=None, engine=engine)


def load_hf_for_pool(
    config: SessionConfig, on_begin: OnBegin, rank: Rank
) -> tuple[HfReplica, EngineLimits]:
    """As ``load_for_pool``, where transformers answers, which divides nothing."""
    assert rank == ALONE
    replica = load_with_transformers(config, open_model(config), on_begin)
    return replica, replica.limits
