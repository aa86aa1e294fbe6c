"""The whole job on one screen: composes the stages of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlmbatch.config import RunConfig
from vlmbatch.cores import default_cpu_threads, default_image_workers
from vlmbatch.data.output_reader import read_output_counts
from vlmbatch.data.validate import validate_rows
from vlmbatch.data.work_folder import check_unlocked
from vlmbatch.errors import RowError
from vlmbatch.fingerprint import run_settings
from vlmbatch.inputs import Inputs, open_images, open_inputs, opening_stage
from vlmbatch.output import DurableOutput, Output, StreamOutput
from vlmbatch.stats import RunStats
from vlmbatch.stopping import StopRequest
from vlmbatch.types import Row

if TYPE_CHECKING:
    from vlmbatch.engine.engine import Engine

_WINDOW_ROWS = 16_384  # rows read but not yet written: bounds what waits for a slow row


def run(config: RunConfig, stats: RunStats) -> None:
    """Answer every row of the manifest and write the output; ``stats`` tells how it went.

    Raises:
        UsageError: the configuration, manifest or checkpoint cannot be used (before any work).
        OutputLockedError: another run is writing the output.
        OutputError: the output cannot be written.
        RunStoppedError: a signal, the deadline or the error budget ended the run early.
    """
    stop = StopRequest(config.grace_s, config.deadline_s, config.max_error_rate)
    if config.output != "-":
        check_unlocked(Path(config.output))  # before a large manifest is read
    stats.stage = opening_stage(config)
    inputs = open_inputs(config)
    with open_output(config, inputs, stats) as output:
        if isinstance(output, DurableOutput) and output.complete:
            earlier = read_output_counts(output.path)
            stats.count_earlier(earlier.num_rows, earlier.errors, earlier.error_examples)
        else:
            stats.rows_earlier = output.num_known
            stats.stage = "loading the model"
            engine = load_engine(config, inputs)
            answer_manifest(config, inputs, engine, output, stats, stop)
    stats.finish()


def answer_manifest(
    config: RunConfig,
    inputs: Inputs,
    engine: Engine,
    output: Output,
    stats: RunStats,
    stop: StopRequest,
) -> None:
    """Stream the manifest's rows through the engine into ``output``, and commit it.

    Raises:
        RunStoppedError: ``stop`` ended the run; what is done is kept where ``output`` can keep it.
    """
    from vlmbatch.generate import AnswerLoop
    from vlmbatch.prepare import RowFeed, prepare
    from vlmbatch.sink import ResultSink

    stats.stage = "answering"
    tokenizer = inputs.processor.tokenizer
    num_workers = config.image_workers
    if num_workers is None:
        num_workers = default_image_workers(engine_on_cpu=engine.device.type == "cpu")
    with stop.on_signals():
        images = open_images(config, inputs, num_workers)
        feed = RowFeed(
            output.watch(inputs.manifest.rows()),
            partial(prepare, processor=inputs.processor, loader=images, known=output.known),
            threads=max(2, 2 * num_workers),  # most of them wait for an image
            depth=config.queue_rows,
            window=_WINDOW_ROWS,
        )
        sink = ResultSink(output.writer, tokenizer, stats, feed.release, output.journal)
        try:
            AnswerLoop(feed, engine, tokenizer, sink, stats, stop).run()
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


def open_output(config: RunConfig, inputs: Inputs, stats: RunStats) -> Output:
    """The output as the manifest's columns and the run's settings shape it."""
    if inputs.streaming:
        return StreamOutput()
    stats.stage = "reading the manifest"
    info = inputs.manifest.scan()
    stats.rows_total = info.num_rows
    if config.output == "-":
        return StreamOutput()
    settings = run_settings(config, inputs.folder, info.sha256, inputs.processor.fingerprint)
    return DurableOutput(config, info, inputs.manifest.rows, settings)


def load_engine(config: RunConfig, inputs: Inputs) -> Engine:
    """Load the weights onto the device and build the engine around them."""
    from vlmbatch.engine.loading import build_engine

    images = inputs.processor.image_processor
    settings = config.engine
    if settings.cpu_threads is None:
        settings = replace(settings, cpu_threads=default_cpu_threads())
    return build_engine(inputs.folder, inputs.model, settings, images.scale, images.bias)


def validate(
    config: RunConfig, stats: RunStats, *, decode_images: bool = False
) -> Iterator[tuple[Row, RowError | None]]:
    """Check every row as ``run`` would, without weights or torch; yields each with its error.

    Raises:
        UsageError: model, image arguments or manifest cannot be used.
    """
    stats.stage = opening_stage(config)
    inputs = open_inputs(config)
    stats.stage = "reading the manifest"
    if not inputs.streaming:
        stats.rows_total = inputs.manifest.scan().num_rows
    stats.stage = "checking rows"
    yield from validate_rows(
        inputs.manifest.rows(), inputs.processor, config.image_limits, decode=decode_images
    )
