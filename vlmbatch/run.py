"""The whole job on one screen: composes the stages of a run."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vlmbatch.config import (
    FileDestination,
    JobConfig,
    ManifestConfig,
    SessionConfig,
    StdoutDestination,
)
from vlmbatch.cores import default_cpu_threads, default_image_workers
from vlmbatch.data.finished import finished_counts
from vlmbatch.data.kept_inputs import InputsWriter
from vlmbatch.data.openai_lines import BatchLines, is_batch_output
from vlmbatch.data.output_reader import changed_output
from vlmbatch.data.spill import Spill
from vlmbatch.data.validate import validate_rows
from vlmbatch.data.work_folder import check_unlocked
from vlmbatch.errors import RowError, UsageError
from vlmbatch.fingerprint import run_settings
from vlmbatch.host_memory import HostMemory
from vlmbatch.inputs import (
    Inputs,
    ModelInputs,
    image_prober,
    open_images,
    open_inputs,
    open_job,
    opening_stage,
)
from vlmbatch.output import DurableOutput, Output, StreamOutput
from vlmbatch.stats import RunStats
from vlmbatch.stopping import StopRequest
from vlmbatch.types import Result, Row

if TYPE_CHECKING:
    from vlmbatch.engine.engine import Engine
    from vlmbatch.image_workers.loader import ImageLoader
    from vlmbatch.replicas.replica import Replica

# Beside a GPU, a thread that wants the interpreter lock gets it after so long from one that only
# computes: the default of 5 ms is a whole decode step.
_SWITCH_INTERVAL_S = 0.001
# They tokenize, and wait for room among the images under way. More of them would mostly take the
# interpreter lock from each other, and from who launches steps.
_PREPARE_THREADS = 2
_FETCH_THREADS = 32  # that may wait for images from the network besides


def run(config: JobConfig, stats: RunStats) -> None:
    """Answer every row of the manifest and write the output; ``stats`` tells how it went.

    Raises:
        UsageError: the configuration, manifest or checkpoint cannot be used (before any work).
        OutputLockedError: another run is writing the output.
        OutputError: the output cannot be written.
        RunStoppedError: a signal, the deadline or the error budget ended the run early.
    """
    from vlmbatch.replicas.local import LocalReplica

    policy = config.policy
    stop = StopRequest(policy.grace_s, policy.deadline_s, policy.max_error_rate)
    if not isinstance(config.destination, StdoutDestination):
        check_unlocked(config.destination.path)  # before a large manifest is read
    stats.stage = opening_stage(config.session)
    inputs = open_job(config)
    with open_output(config, inputs, stats) as output:
        if isinstance(output, DurableOutput) and output.complete:
            earlier = finished_counts(output.path)
            if earlier.num_rows != stats.rows_total:
                raise changed_output(output.path)
            stats.count_earlier(earlier.num_rows, earlier.errors, earlier.error_examples)
        else:
            stats.rows_earlier = output.num_known
            stats.stage = "loading the model"
            with closing(start_images(config.session, inputs)) as images:
                engine = load_engine(config.session, inputs)
                freeze_loaded(engine)
                replica = LocalReplica(engine, inputs.processor.tokenizer)
                answer_manifest(config, inputs, replica, images, output, stats, stop)
    stats.finish()


def answer_manifest(
    config: JobConfig,
    inputs: Inputs,
    replica: Replica,
    images: ImageLoader,
    output: Output,
    stats: RunStats,
    stop: StopRequest,
) -> None:
    """Stream the manifest's rows through ``replica`` into ``output``, and commit it.

    ``images`` is closed at the end.

    Raises:
        RunStoppedError: ``stop`` ended the run; what is done is kept where ``output`` can keep it.
    """
    from vlmbatch.generate import AnswerLoop
    from vlmbatch.grouping import RowGroups
    from vlmbatch.prepare import RowFeed, start_preparing
    from vlmbatch.sink import ResultSink

    stats.stage = "answering"
    tokenizer = inputs.processor.tokenizer
    memory = HostMemory.divide(config.session.host_memory)
    groups = None
    if (last_uses := inputs.manifest.last_image_uses) is not None:
        groups = RowGroups(last_uses, Spill(memory.rows, output.folder), memory.encoded)
    with stop.on_signals():
        feed = RowFeed(
            output.watch(inputs.manifest.rows()),
            partial(start_preparing, processor=inputs.processor, loader=images, known=output.known),
            threads=_PREPARE_THREADS
            + (_FETCH_THREADS if config.session.image_loading.allowed_domains else 0),
            depth=config.queue_rows,
            window=memory.window_rows,
            max_bytes=memory.encoded,
            image_bytes=inputs.processor.largest_grid.num_bytes,
            max_pixel_bytes=memory.pixels,
            groups=groups,
        )
        spill: Spill[Result] = Spill(memory.results, output.folder)
        writer = output.writer
        if config.manifest.keep_inputs and not inputs.streaming:
            writer = InputsWriter(writer, inputs.manifest.kept_inputs())
        sink = ResultSink(writer, tokenizer, stats, feed.release, output.journal, spill)
        try:
            AnswerLoop(feed, replica, sink, stats, stop).run()
            sink.flush()
            stopped = stop.reason  # a signal that comes later finds nothing left to stop
            if stopped is None:
                stats.stage = "writing the output"
                output.commit()
        finally:
            images.close()  # first: the feed would wait for images under way
            feed.close()
            sink.close()
    if stopped is not None:
        raise stopped


def open_output(config: JobConfig, inputs: Inputs, stats: RunStats) -> Output:
    """The output as the manifest's columns and the run's settings shape it."""
    is_batch = inputs.manifest.format == "openai"
    lines = BatchLines.new(config.session.model) if is_batch else None
    prefix = config.manifest.column_prefix or ""
    if inputs.streaming:
        return StreamOutput(lines, prefix)
    stats.stage = "reading the manifest"
    info = inputs.manifest.scan()
    stats.rows_total = info.num_rows
    destination = config.destination
    if isinstance(destination, StdoutDestination):
        return StreamOutput(lines, prefix)
    wants_batch = isinstance(destination, FileDestination) and is_batch_output(destination.path)
    if wants_batch and info.num_rows and not is_batch:
        raise UsageError(
            f"output {destination}: {config.manifest.source} does not hold OpenAI's batch "
            "requests, and JSONL files are written for these alone: choose a name that ends in "
            ".parquet, a folder, or - for JSONL on standard output"
        )
    settings = run_settings(config, inputs, info)
    return DurableOutput(config, destination, info, inputs.manifest.rows, settings)


def start_images(config: SessionConfig, inputs: ModelInputs) -> ImageLoader:
    """What decodes images beside an engine that is yet to be loaded: processes start meanwhile.

    Raises:
        ConfigError: the device is not to be had here.
    """
    num_workers = config.image_loading.workers
    if num_workers is None:
        from vlmbatch.engine.loading import resolve_device

        on_cpu = resolve_device(config.engine.device).type == "cpu"
        num_workers = default_image_workers(engine_on_cpu=on_cpu)
    return open_images(config, inputs, num_workers)


def load_engine(config: SessionConfig, inputs: ModelInputs) -> Engine:
    """Load the weights onto the device and build the engine around them."""
    from vlmbatch.engine.loading import build_engine

    settings = config.engine
    if settings.cpu_threads is None:
        settings = replace(settings, cpu_threads=default_cpu_threads())
    engine = build_engine(inputs.folder, inputs.model, settings, inputs.processor)
    if engine.device.type == "cuda":
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
    return engine


def freeze_loaded(engine: Engine) -> None:
    """Leave what is loaded by now out of garbage collections, in a process that is ours alone.

    To look through all of it takes a quarter of a second, in which nothing is launched.
    """
    if engine.device.type == "cuda":
        gc.collect()
        gc.freeze()


def validate(
    config: SessionConfig,
    manifest: ManifestConfig,
    stats: RunStats,
    *,
    decode_images: bool = False,
) -> Iterator[tuple[Row, RowError | None]]:
    """Check every row as ``run`` would, without weights or torch; yields each with its error.

    Raises:
        UsageError: model, image arguments or manifest cannot be used.
    """
    stats.stage = opening_stage(config)
    inputs = open_inputs(config, manifest, streaming=manifest.source == "-")
    stats.stage = "reading the manifest"
    if not inputs.streaming:
        stats.rows_total = inputs.manifest.scan().num_rows
    stats.stage = "checking rows"
    rows, processor = inputs.manifest.rows(), inputs.processor
    if not decode_images:
        yield from validate_rows(rows, processor, image_prober(config, inputs))
        return
    num_workers = config.image_loading.workers
    if num_workers is None:
        num_workers = default_image_workers(engine_on_cpu=False)
    images = open_images(config, inputs, num_workers)
    try:
        threads = max(2, 2 * num_workers)
        yield from validate_rows(
            rows, processor, lambda ref: images.submit(ref).result().grid, threads
        )
    finally:
        images.close()
