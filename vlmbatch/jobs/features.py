"""Image features computed once: the vision tower's output for every image of a manifest."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlmbatch.config import ManifestConfig, SessionConfig
from vlmbatch.errors import ConfigError, RowError, UsageError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.images.loading.shared_loader import SharedLoader
from vlmbatch.images.read_ahead import read_ahead
from vlmbatch.images.shared_memory import SharedMemory
from vlmbatch.jobs.named_images import ImageNamer, NamedImage, Outcome
from vlmbatch.jobs.tower_writer import TowerWriter
from vlmbatch.manifest.ids import NamedRowError
from vlmbatch.output.feature_folder import FeatureFolder, FeatureManifest
from vlmbatch.output.stored_features import StoredFeatureFolder
from vlmbatch.remote.filesystem import open_filesystem
from vlmbatch.session.engines import engine_places
from vlmbatch.session.load import image_workers
from vlmbatch.session.open import Inputs, open_images, open_inputs, opening_stage
from vlmbatch.session.towers import loaded_towers
from vlmbatch.stats import RunStats
from vlmbatch.types import ImageRef, Row

_WINDOW_ROWS = 128  # rows read ahead of each tower, but no more of them than have
_WINDOW_BYTES = 2**27  # of embedded images, and one row


@dataclass(frozen=True, slots=True)
class WrittenFeatures:
    """``num_encoded``: images that a tower has seen. ``lacks_prompts``: whether a row has none."""

    num_encoded: int
    lacks_prompts: bool


def write_features(
    config: SessionConfig,
    manifest_config: ManifestConfig,
    output: Path,
    stats: RunStats,
    report: Callable[[Row, RowError], None],
    url: str | None = None,
) -> WrittenFeatures:
    """Fill the folder ``output``; with a ``url``, put what it holds there.

    Images whose features are there are neither decoded nor encoded. A row that cannot be read, or
    whose image cannot, is given to ``report`` and keeps what it had in the image's place.

    Raises:
        UsageError: the configuration, manifest or checkpoint cannot be used.
        OutputLockedError: another process writes the folder.
        OutputError: the folder cannot be written.
        RemoteError: the store refuses, or cannot be reached.
    """
    from vlmbatch.engine.limits import VISION_TOKENS
    from vlmbatch.engine.loading import resolve_device, resolve_dtype

    places = engine_places(config.engine, "all")  # what is not there is refused before all else
    num_engines = len(places) or 1
    stats.stage = opening_stage(config)
    inputs = open_inputs(config, manifest_config, stats=stats, needs_prompts=False)
    if isinstance(inputs.model, HfConfig):
        raise ConfigError(
            f"features are computed by families of our own alone, and model_type "
            f"{inputs.model.model_type} is answered by transformers"
        )
    stats.stage = "reading the manifest"
    stats.rows_total = inputs.manifest.scan().num_rows
    if inputs.manifest.format != "manifest":
        raise UsageError(
            f"{manifest_config.source} holds OpenAI batch requests: features are computed for the "
            "image column of a manifest"
        )
    device = resolve_device(config.engine.device)
    with ExitStack() as stack:
        folder = stack.enter_context(_open_folder(output, url))
        manifest = FeatureManifest(folder)
        stack.callback(manifest.close)
        memory = stack.enter_context(closing(SharedMemory())) if places else None
        start = partial(loaded_towers, config, inputs, output, places, memory)
        tower = TowerWriter(start, folder, VISION_TOKENS[device.type])
        stack.callback(tower.close)
        num_workers = image_workers(config, num_engines)
        threads = ThreadPoolExecutor(max(2, 2 * num_workers), thread_name_prefix="features")
        stack.callback(threads.shutdown, cancel_futures=True)
        gpu = places[0].first_gpu if places else None
        images = open_images(config, inputs, num_workers, gpu)
        stack.callback(images.close)
        if memory is not None:
            images = SharedLoader(images, memory)
        dtype = resolve_dtype(config.engine.dtype, inputs.model, device)
        namer = ImageNamer(config, inputs, folder, images, str(dtype))
        stack.callback(namer.close)
        lacks_prompts = False
        stats.stage = "computing features"
        stats.work_started = time.monotonic()
        naming = _start_naming(inputs, namer, threads)
        for row, (values, outcomes) in read_ahead(
            naming, _WINDOW_ROWS * num_engines, _WINDOW_BYTES
        ):
            tower.add(outcomes)
            error = row.error or next((o for o in outcomes if isinstance(o, RowError)), None)
            if error is not None:
                report(row, error)
            column = manifest_config.image_column
            if not values:
                # Its id is its name, or again "#" and its index: no other row has that.
                known = row.error.name if isinstance(row.error, NamedRowError) else None
                values = {manifest_config.id_column: known}
            lacks_prompts |= row.error is None and row.prompt is None and row.messages is None
            manifest.write({**values, **_image_values(row, values, column, outcomes, folder)})
            stats.rows_done += 1
            stats.images_done += sum(isinstance(outcome, NamedImage) for outcome in outcomes)
        tower.finish()
        stats.engines = tower.shares
        stats.stage = "writing the manifest"
        manifest.commit()
        if isinstance(folder, StoredFeatureFolder):
            folder.put(stats)
    stats.finish()
    return WrittenFeatures(tower.num_encoded, lacks_prompts)


def _open_folder(output: Path, url: str | None) -> FeatureFolder:
    if url is None:
        return FeatureFolder(output)
    return StoredFeatureFolder(open_filesystem(url), output)


def _start_naming(
    inputs: Inputs, namer: ImageNamer, threads: ThreadPoolExecutor
) -> Iterator[tuple[Row, Future[tuple[dict[str, Any], list[Outcome]]]]]:
    """Every row, with its values and its images to come from ``threads``."""

    def name(row: Row, values: dict[str, Any]) -> tuple[dict[str, Any], list[Outcome]]:
        return values, namer.name(row)

    for row, values in inputs.manifest.rows_with_values():
        yield row, threads.submit(name, row, values)


def _image_values(
    row: Row, values: dict[str, Any], column: str, outcomes: list[Outcome], folder: FeatureFolder
) -> dict[str, Any]:
    """The image column with features in the place of images, where there are some."""
    if not row.images:
        return {}
    several = isinstance(values[column], list)
    given = values[column] if several else [values[column]]
    paths = [
        _original(ref, each)
        if isinstance(outcome, RowError)
        else folder.relative_path(outcome.name)
        for ref, each, outcome in zip(row.images, given, outcomes, strict=True)
    ]
    return {column: paths if several else paths[0]}


def _original(ref: ImageRef, given: object) -> object:
    """An image that has no features, still an error wherever the new manifest lies."""
    if ref.data is not None:
        if isinstance(given, str):  # a data: URL
            return given
        return {"bytes": None, "path": ref.path}
    if ref.url is not None:
        return ref.url
    return _as_utf8(os.path.abspath(ref.path or ""))  # noqa: PTH100 - resolves no links


def _as_utf8(path: str) -> str:
    """A path for where text must be UTF-8, which the names of files need not be."""
    return path.encode("utf-8", "backslashreplace").decode()
