"""Where the vision tower runs that fills a folder of features: here, or in several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from vlmbatch.config import SessionConfig
from vlmbatch.engine.rank import ALONE, Rank
from vlmbatch.images.shared_memory import SharedMemory
from vlmbatch.models.config import ModelConfig
from vlmbatch.output.feature_folder import FeatureFiles
from vlmbatch.replicas.messages import EngineLimits
from vlmbatch.replicas.replica import OnBegin, Replica
from vlmbatch.replicas.tower import MAX_WAITING, TowerReplica
from vlmbatch.session.cores import default_cpu_threads
from vlmbatch.session.engines import EnginePlace, in_processes, started_pool
from vlmbatch.session.open import ModelInputs


@contextmanager
def loaded_towers(
    config: SessionConfig,
    inputs: ModelInputs,
    folder: Path,
    places: tuple[EnginePlace, ...],
    memory: SharedMemory | None,
) -> Iterator[Replica]:
    """A tower at each of ``places``, or one in this process where there are none.

    They write to ``folder``, which this process holds. ``memory``: what images of several are in.

    Raises:
        CheckpointError: the weights do not fit the configuration.
        EnginesLostError: no process could be kept running until its tower was loaded.
    """
    if memory is None:
        with closing(load_tower(config, inputs, folder)) as tower:
            yield tower
        return
    model = ModelInputs(inputs.folder, inputs.model, inputs.processor)
    load = partial(load_tower_for_pool, in_processes(config, places), model, folder)
    with started_pool(load, places, memory) as pool:
        yield pool


def load_tower(
    config: SessionConfig, inputs: ModelInputs, folder: Path, on_begin: OnBegin | None = None
) -> TowerReplica:
    """Load the tower alone onto the device; to be closed.

    Raises:
        CheckpointError: the weights do not fit the configuration.
    """
    from vlmbatch.engine.image_upload import ImageUpload
    from vlmbatch.engine.loading import build_vision, resolve_device

    images = inputs.processor.images
    assert images is not None
    assert isinstance(inputs.model, ModelConfig)
    settings = config.engine
    if settings.cpu_threads is None:
        settings = replace(settings, cpu_threads=default_cpu_threads())
    vision = build_vision(inputs.folder, inputs.model, settings, images)
    upload = ImageUpload(resolve_device(settings.device))
    model = config.model.encode("utf-8", "backslashreplace").decode()  # names of files need not be
    files = FeatureFiles(folder)
    return TowerReplica(vision, upload, inputs.processor, files, model, on_begin)


def load_tower_for_pool(
    config: SessionConfig, inputs: ModelInputs, folder: Path, on_begin: OnBegin, rank: Rank
) -> tuple[TowerReplica, EngineLimits]:
    """As ``load_tower``, in the process that is to run it; a tower is not divided."""
    from vlmbatch.engine.loading import resolve_device

    assert rank == ALONE
    on_cpu = resolve_device(config.engine.device).type == "cpu"
    limits = EngineLimits(MAX_WAITING, max_model_len=0, kv_cache_tokens=0, on_cpu=on_cpu)
    return load_tower(config, inputs, folder, on_begin), limits
