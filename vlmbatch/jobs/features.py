"""Image features computed once: the vision tower's output for every image of a manifest."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from vlmbatch.config import ManifestConfig, SessionConfig
from vlmbatch.errors import ConfigError, EnginesLostError, RowError, UsageError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.images.file import read_image_bytes
from vlmbatch.images.loading.loader import ImageLoader
from vlmbatch.images.loading.shared_fetches import KEEP_SECONDS
from vlmbatch.images.loading.shared_loader import SharedLoader
from vlmbatch.images.read_ahead import read_ahead
from vlmbatch.images.shared_memory import SharedMemory
from vlmbatch.jobs.fingerprint import checkpoint_digest
from vlmbatch.manifest.ids import NamedRowError
from vlmbatch.output.feature_folder import FeatureFolder, FeatureManifest
from vlmbatch.output.stored_features import StoredFeatureFolder
from vlmbatch.remote.filesystem import open_filesystem
from vlmbatch.replicas.replica import Event, Replica, RowFailure
from vlmbatch.replicas.tower import batch_request
from vlmbatch.session.engines import engine_places
from vlmbatch.session.load import image_workers
from vlmbatch.session.open import (
    Inputs,
    open_fetches,
    open_images,
    open_inputs,
    opening_stage,
)
from vlmbatch.session.towers import loaded_towers
from vlmbatch.stats import RunStats
from vlmbatch.types import ImageRef, PixelImage, Row

_WINDOW_ROWS = 128  # rows read ahead of each tower, but no more of them than have
_WINDOW_BYTES = 2**27  # of embedded images, and one row


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image by the name of its features, with pixels where these are still to be computed."""

    name: str
    pixels: PixelImage | None


Outcome = NamedImage | RowError


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
        reader = ImageReader(config, inputs, folder, images, str(dtype))
        lacks_prompts = False
        stats.stage = "computing features"
        stats.work_started = time.monotonic()
        reading = _start_reading(inputs, reader, threads)
        for row, (values, outcomes) in read_ahead(
            reading, _WINDOW_ROWS * num_engines, _WINDOW_BYTES
        ):
            tower.add(outcomes)
            error = row.error or next((o for o in outcomes if isinstance(o, RowError)), None)
            if error is not None:
                report(row, error)
            column = manifest_config.image_column
            if (
                not values
            ):  # whose id is its name, or again "#" and its index: no other row has that
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


class ImageReader:
    """Names images by what decides their features, and decodes those that are not stored yet."""

    def __init__(
        self,
        config: SessionConfig,
        inputs: Inputs,
        folder: FeatureFolder,
        images: ImageLoader,
        dtype: str,
    ) -> None:
        assert inputs.processor.images is not None
        self._limits = config.image_limits
        self._folder = folder
        self._images = images
        self._fetches = open_fetches(config, KEEP_SECONDS)
        self._processor = inputs.processor.images
        self._checkpoint = checkpoint_digest(inputs.folder)
        decoder = config.image_loading.decoder
        # Nothing where it is exact, as in versions that knew no other.
        self._loading = (dtype,) if decoder == "exact" else (dtype, decoder)

    def read(self, row: Row) -> list[Outcome]:
        """What has become of each of the row's images, in order. Thread-safe."""
        return [self._read(ref) for ref in row.images]

    def _read(self, ref: ImageRef) -> Outcome:
        try:
            context = self._context(ref)
            data = self._bytes(ref)
            digest = hashlib.blake2b(data, digest_size=20, key=context)
            name = digest.hexdigest()
            if self._folder.has(name):
                return NamedImage(name, None)
            embedded = replace(ref, path=ref.url or ref.path, data=data, url=None)
            image = self._images.submit(embedded).result()
        except RowError as error:
            return error
        assert isinstance(image, PixelImage)
        return NamedImage(name, image)

    def _context(self, ref: ImageRef) -> bytes:
        """Digest of what decides an image's features beside its file."""
        fingerprint = self._processor.at(ref.resolution, ref.row_images).fingerprint
        page = () if ref.page is None else (ref.page,)
        context = repr((self._checkpoint, fingerprint, *self._loading, *page))
        return hashlib.blake2b(context.encode()).digest()

    def _bytes(self, ref: ImageRef) -> bytes:
        if ref.url is None:
            return read_image_bytes(ref, self._limits)
        return self._fetches.fetch(ref.url)


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


def _start_reading(
    inputs: Inputs, reader: ImageReader, threads: ThreadPoolExecutor
) -> Iterator[tuple[Row, Future[tuple[dict[str, Any], list[Outcome]]]]]:
    """Every row, with its values and its images to come from ``threads``."""

    def read(row: Row, values: dict[str, Any]) -> tuple[dict[str, Any], list[Outcome]]:
        return values, reader.read(row)

    for row, values in inputs.manifest.rows_with_values():
        yield row, threads.submit(read, row, values)


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
