"""The whole job on one screen: composes the stages of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from vlmbatch import __version__
from vlmbatch.config import RunConfig
from vlmbatch.data.jsonl_writer import JsonlResultWriter
from vlmbatch.data.manifest import Manifest, open_manifest
from vlmbatch.data.schema import output_schema
from vlmbatch.data.validate import validate_rows
from vlmbatch.data.writer import ParquetResultWriter, ResultWriter
from vlmbatch.errors import RowError
from vlmbatch.fingerprint import fingerprint, run_settings
from vlmbatch.models.config import ModelConfig, check_image_arguments, load_model_config
from vlmbatch.models.hub import resolve_model
from vlmbatch.models.processor import LlavaProcessor
from vlmbatch.stats import RunStats
from vlmbatch.types import Row

if TYPE_CHECKING:
    from vlmbatch.engine.engine import Engine

_WINDOW_ROWS = 16_384  # rows read but not yet written: bounds what waits for a slow row


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run needs before any weights are read."""

    folder: Path
    model: ModelConfig
    processor: LlavaProcessor
    manifest: Manifest
    streaming: bool  # answers leave as rows arrive: nothing is known of the whole manifest


def open_inputs(config: RunConfig) -> Inputs:
    """Read the model's configuration and processor, and open the manifest. No torch.

    Raises:
        UsageError: model, image arguments or manifest cannot be used.
    """
    folder = resolve_model(config.model, config.revision)
    model = load_model_config(folder)
    check_image_arguments(model, config.image_arguments)
    processor = LlavaProcessor.load(
        folder, model, config.prompt, config.image_arguments, config.engine.max_model_len
    )
    streaming = config.manifest.source == "-" and config.output == "-"
    manifest = open_manifest(
        config.manifest,
        config.sampling,
        image_base=config.image_limits.root,
        streaming=streaming,
    )
    return Inputs(folder, model, processor, manifest, streaming)


def run(config: RunConfig, stats: RunStats) -> None:
    """Answer every row of the manifest and write the output; ``stats`` tells how it went.

    Raises:
        UsageError: the configuration, manifest or checkpoint cannot be used (before any work).
        OutputError: the output cannot be written.
    """
    stats.stage = "reading the manifest"
    inputs = open_inputs(config)
    writer = open_writer(config, inputs, stats)
    try:
        stats.stage = "loading the model"
        engine = load_engine(config, inputs)
        answer_manifest(config, inputs, engine, writer, stats)
    except BaseException:
        writer.abort()
        raise
    stats.finish()


def answer_manifest(
    config: RunConfig, inputs: Inputs, engine: Engine, writer: ResultWriter, stats: RunStats
) -> None:
    """Stream the manifest's rows through the engine into ``writer``, and commit it."""
    from vlmbatch.generate import answer_rows
    from vlmbatch.prepare import RowFeed, prepare
    from vlmbatch.sink import ResultSink

    stats.stage = "answering"
    feed = RowFeed(
        inputs.manifest.rows(),
        partial(prepare, processor=inputs.processor, limits=config.image_limits),
        threads=config.image_threads,
        depth=config.queue_rows,
        window=_WINDOW_ROWS,
    )
    sink = ResultSink(writer, inputs.processor.tokenizer, stats, written=feed.release)
    try:
        answer_rows(feed, engine, inputs.processor.tokenizer, sink, stats)
        stats.stage = "writing the output"
        sink.close()
    finally:
        feed.close()
        sink.stop()


def open_writer(config: RunConfig, inputs: Inputs, stats: RunStats) -> ResultWriter:
    """The output as the manifest's columns and the run's settings shape it."""
    if inputs.streaming:
        return JsonlResultWriter(sys.stdout.buffer)
    info = inputs.manifest.scan()
    stats.rows_total = info.num_rows
    if config.output == "-":
        return JsonlResultWriter(sys.stdout.buffer)
    settings = run_settings(config, inputs.folder, info.sha256, inputs.processor.fingerprint)
    metadata = {
        "vlmbatch.version": __version__,
        "vlmbatch.run_fingerprint": fingerprint(settings),
        "vlmbatch.model": config.model,
        "vlmbatch.sampling": json.dumps(settings["sampling"]),
        "vlmbatch.manifest_sha256": info.sha256,
    }
    schema: pa.Schema = output_schema(info.extra_schema)
    return ParquetResultWriter(Path(config.output), schema, metadata)


def load_engine(config: RunConfig, inputs: Inputs) -> Engine:
    """Load the weights onto the device and build the engine around them."""
    from vlmbatch.engine.loading import build_engine

    images = inputs.processor.image_processor
    return build_engine(inputs.folder, inputs.model, config.engine, images.scale, images.bias)


def validate(
    config: RunConfig, stats: RunStats, *, decode_images: bool = False
) -> Iterator[tuple[Row, RowError | None]]:
    """Check every row as ``run`` would, without weights or torch; yields each with its error.

    Raises:
        UsageError: model, image arguments or manifest cannot be used.
    """
    stats.stage = "reading the manifest"
    inputs = open_inputs(config)
    if not inputs.streaming:
        stats.rows_total = inputs.manifest.scan().num_rows
    stats.stage = "checking rows"
    yield from validate_rows(
        inputs.manifest.rows(), inputs.processor, config.image_limits, decode=decode_images
    )
