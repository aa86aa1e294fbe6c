"""Image features computed once: the vision tower's output for every image of a manifest."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbatch.config import EngineConfig, ManifestConfig, SessionConfig
from vlmbatch.errors import ConfigError, RowError, UsageError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.images.feature_file import TENSOR_NAME
from vlmbatch.images.file import read_image_bytes
from vlmbatch.images.loading.loader import ImageLoader
from vlmbatch.images.read_ahead import read_ahead
from vlmbatch.jobs.fingerprint import checkpoint_digest
from vlmbatch.models.config import ModelConfig
from vlmbatch.output.feature_folder import FeatureFolder, FeatureManifest
from vlmbatch.session.cores import default_cpu_threads, default_image_workers
from vlmbatch.session.open import (
    Inputs,
    open_fetcher,
    open_images,
    open_inputs,
    opening_stage,
)
from vlmbatch.stats import RunStats
from vlmbatch.types import ImageRef, PixelImage, Row

if TYPE_CHECKING:
    import torch

    from vlmbatch.engine.image_upload import ImageUpload
    from vlmbatch.models.family import VisionModel

_WINDOW_ROWS = 128  # rows read ahead of the tower, but no more of them than have
_WINDOW_BYTES = 2**27  # of embedded images, and one row
_WRITERS = 4  # threads: most of their time they wait for the disk
_MAX_UNWRITTEN = 128


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image by the name of its features, with pixels where these are still to be computed."""

    name: str
    pixels: PixelImage | None


Outcome = NamedImage | RowError


def write_features(
    config: SessionConfig,
    manifest_config: ManifestConfig,
    output: Path,
    stats: RunStats,
    report: Callable[[Row, RowError], None],
) -> int:
    """Fill the folder ``output``; returns how many images the tower has seen.

    Images whose features are there are neither decoded nor encoded. A row that cannot be read, or
    whose image cannot, is given to ``report`` and keeps what it had in the image's place.

    Raises:
        UsageError: the configuration, manifest or checkpoint cannot be used.
        OutputLockedError: another process writes the folder.
        OutputError: the folder cannot be written.
    """
    from vlmbatch.engine.limits import VISION_TOKENS
    from vlmbatch.engine.loading import resolve_device, resolve_dtype

    stats.stage = opening_stage(config)
    inputs = open_inputs(config, manifest_config)
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
    num_workers = config.image_loading.workers
    if num_workers is None:
        num_workers = default_image_workers(engine_on_cpu=device.type == "cpu")
    with ExitStack() as stack:
        folder = stack.enter_context(FeatureFolder(output))
        manifest = FeatureManifest(folder)
        stack.callback(manifest.close)
        tower = TowerWriter(config, inputs, folder, VISION_TOKENS[device.type])
        stack.callback(tower.close)
        threads = ThreadPoolExecutor(max(2, 2 * num_workers), thread_name_prefix="features")
        stack.callback(threads.shutdown, cancel_futures=True)
        images = open_images(config, inputs, num_workers)
        stack.callback(images.close)
        dtype = resolve_dtype(config.engine.dtype, inputs.model, device)
        reader = ImageReader(config, inputs, folder, images, str(dtype))
        stats.stage = "computing features"
        stats.work_started = time.monotonic()
        reading = _start_reading(inputs, reader, threads)
        for row, (values, outcomes) in read_ahead(reading, _WINDOW_ROWS, _WINDOW_BYTES):
            tower.add(outcomes)
            error = row.error or next((o for o in outcomes if isinstance(o, RowError)), None)
            if error is not None:
                report(row, error)
            column = manifest_config.image_column
            manifest.write({**values, **_image_values(row, values, column, outcomes, folder)})
            stats.rows_done += 1
            stats.images_done += sum(isinstance(outcome, NamedImage) for outcome in outcomes)
        tower.finish()
        stats.stage = "writing the manifest"
        manifest.commit()
    stats.finish()
    return tower.num_encoded


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
        self._fetcher = open_fetcher(config)
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
        return self._fetcher.fetch(ref.url)


class TowerWriter:
    """Runs the tower over full batches of images and has their features written.

    The tower is loaded when the first image needs it.
    """

    def __init__(
        self, config: SessionConfig, inputs: Inputs, folder: FeatureFolder, batch_tokens: int
    ) -> None:
        """``batch_tokens``: image tokens of a full batch."""
        self._config = config
        self._inputs = inputs
        self._folder = folder
        self._batch_tokens = batch_tokens
        self._num_tokens = 0  # of the batch
        self._vision: VisionModel | None = None
        self._upload: ImageUpload | None = None
        self._batch: dict[str, PixelImage] = {}
        self._unwritten: dict[str, Future[None]] = {}
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="feature-writer")
        self.num_encoded = 0

    def add(self, outcomes: list[Outcome]) -> None:
        """Take the images that need features; those of full batches are computed at once."""
        for outcome in outcomes:
            if isinstance(outcome, RowError) or outcome.pixels is None:
                continue
            name = outcome.name
            if name in self._batch or name in self._unwritten or self._folder.has(name):
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
        self._wait(0)

    def close(self) -> None:
        self._writers.shutdown(cancel_futures=True)

    def _encode(self) -> None:
        from safetensors.torch import save

        metadata = {"model": _as_utf8(self._config.model)}
        features = self._extract(list(self._batch.values()))
        for (name, image), tensor in zip(self._batch.items(), features, strict=True):
            shape = self._inputs.processor.feature_shape(image.grid)
            data = save({TENSOR_NAME: tensor.reshape(shape).contiguous()}, metadata)
            self._unwritten[name] = self._writers.submit(self._folder.write, name, data)
        self.num_encoded += len(self._batch)
        self._batch.clear()
        self._num_tokens = 0
        self._wait(_MAX_UNWRITTEN)

    def _extract(self, images: list[PixelImage]) -> list[torch.Tensor]:
        """Features (tokens, C) of each image, on the host."""
        import torch

        from vlmbatch.engine.image_upload import ImageUpload
        from vlmbatch.engine.loading import resolve_device

        vision = self._vision = self._vision or self._load()
        upload = self._upload = self._upload or ImageUpload(
            resolve_device(self._config.engine.device)
        )
        pixels = upload.pixels([image.pixels for image in images])
        features = vision.extract_features(pixels, [image.grid for image in images])
        return list(torch.split(torch.cat(features).cpu(), [len(each) for each in features]))

    def _wait(self, most: int) -> None:
        """Wait until at most so many files are not yet durable. Raises what writing raised."""
        for name, future in list(self._unwritten.items()):
            if future.done() or len(self._unwritten) > most:
                future.result()
                del self._unwritten[name]

    def _load(self) -> VisionModel:
        from vlmbatch.engine.loading import build_vision

        images = self._inputs.processor.images
        assert images is not None
        assert isinstance(self._inputs.model, ModelConfig)
        settings: EngineConfig = self._config.engine
        if settings.cpu_threads is None:
            settings = replace(settings, cpu_threads=default_cpu_threads())
        return build_vision(self._inputs.folder, self._inputs.model, settings, images)


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
