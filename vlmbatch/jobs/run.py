"""A run on one screen: composes its stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

from vlmbatch.config import (
    DurableDestination,
    FileDestination,
    FolderDestination,
    JobConfig,
    PartDestination,
    StdoutDestination,
)
from vlmbatch.durable.spill import Spill
from vlmbatch.errors import EnginesLostError, UsageError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.images.loading.shared_loader import SharedLoader
from vlmbatch.jobs.answer_texts import text_folder_of, write_finished_texts
from vlmbatch.jobs.fingerprint import run_settings
from vlmbatch.jobs.row_feed import start_feed
from vlmbatch.jobs.run_output import DurableOutput, Output
from vlmbatch.jobs.stream_output import StreamOutput
from vlmbatch.manifest.arrow_values import TIME_REDUCERS
from vlmbatch.manifest.schema import asked_columns
from vlmbatch.output.finished import finished_counts
from vlmbatch.output.json_fields import JsonFieldsWriter
from vlmbatch.output.kept_inputs import InputsWriter
from vlmbatch.output.openai_lines import BatchLines, is_batch_output
from vlmbatch.output.parts import check_folder, check_without_parts
from vlmbatch.output.reader import changed_output
from vlmbatch.output.stored_texts import StoredTextFolder
from vlmbatch.output.text_writer import ResultTee, TextWriter
from vlmbatch.output.work_folder import check_unlocked
from vlmbatch.session.engines import EnginePlace, engine_places
from vlmbatch.session.gpu_context import make_context_early
from vlmbatch.session.host_memory import HostMemory
from vlmbatch.session.load import composed, start_images
from vlmbatch.session.open import Inputs, open_job, opening_stage
from vlmbatch.session.replica import loaded_replica
from vlmbatch.stages.stopping import RunStoppedError, StopRequest
from vlmbatch.stats import RunStats
from vlmbatch.types import Result

if TYPE_CHECKING:
    from vlmbatch.images.loading.loader import ImageLoader
    from vlmbatch.output.text_folder import TextFolder
    from vlmbatch.replicas.replica import Replica, ReplicaStatus
    from vlmbatch.stages.feed import RowFeed


def run(config: JobConfig, stats: RunStats) -> None:
    """Answer every row of the manifest and write the output; ``stats`` tells how it went.

    Raises:
        UsageError: the configuration, manifest or checkpoint cannot be used (before any work).
        OutputLockedError: another run is writing the output.
        OutputError: the output cannot be written.
        RunStoppedError: a signal, the deadline or the error budget ended the run early.
    """
    stats.end_stage("imports")
    policy = config.policy
    engine = config.session.engine
    if engine.several_asked_for:
        engine_places(engine, "all")  # what is not there is refused before anything is read
    stop = StopRequest(policy.grace_s, policy.deadline_s, policy.max_error_rate)
    if not isinstance(config.destination, StdoutDestination):
        check_free(config.destination)  # before a large manifest is read
    stats.stage = opening_stage(config.session)
    inputs = open_job(config, stats)
    stats.end_stage("model_files")
    stats.quantization = inputs.quantization(config.session.engine)
    texts = text_folder_of(config, inputs)
    with open_output(config, inputs, stats, texts) as output:
        if texts is not None:
            texts.claim()
        stats.end_stage("manifest")
        if not was_complete(output, stats):
            stats.stage = "loading the model"
            with _started(config, inputs, output, stats) as (images, replica, feed):
                stats.end_stage("engine")
                try:
                    answer_manifest(
                        config, inputs, replica, images, output, stats, stop, texts, feed
                    )
                finally:
                    _count_work(replica.status, stats)
        elif texts is not None and isinstance(output, DurableOutput):
            stats.stage = "writing texts"
            write_finished_texts(output, inputs, texts)
        if isinstance(texts, StoredTextFolder):
            texts.put(stats)
    stats.finish()


def was_complete(output: Output, stats: RunStats) -> bool:
    """Whether nothing is left to do for an output; what an earlier run did is counted in ``stats``.

    Raises:
        UsageError: something else has changed the output.
        OutputError: it cannot be read.
    """
    if not isinstance(output, DurableOutput) or not output.complete:
        stats.rows_earlier = output.num_known
        return False
    earlier = finished_counts(output.path)
    if earlier.num_rows != stats.rows_total:
        raise changed_output(output.path)
    stats.count_earlier(earlier.num_rows, earlier.errors, earlier.error_examples)
    return True


@contextmanager
def _started(
    config: JobConfig, inputs: Inputs, output: Output, stats: RunStats
) -> Iterator[tuple[ImageLoader, Replica, RowFeed | None]]:
    """What decodes images, and what answers: one engine in this process, or several.

    While a single one is loaded, a feed already prepares the first rows.
    """
    from vlmbatch.replicas.pool import ReplicaPool
    from vlmbatch.stages.answer_loop import GATHER_SECONDS

    make_context_early(config.session.engine)
    places: tuple[EnginePlace, ...] = ()
    if not isinstance(inputs.model, HfConfig) or config.session.engine.several_asked_for:
        places = engine_places(config.session.engine, "all")
    is_ours = not isinstance(inputs.model, HfConfig)
    with ExitStack() as stack:
        started = start_images(
            config.session, inputs, len(places) or 1, places[0].first_gpu if places else None
        )
        images: ImageLoader = stack.enter_context(closing(started))
        stats.end_stage("devices")
        feed = None
        if is_ours and not places:  # the processor of transformers is part of what is loaded
            feed = start_feed(config, inputs, images, output)
            stack.callback(feed.close)
            stack.callback(images.close)  # first: see ``answer_manifest``
        replica = stack.enter_context(
            loaded_replica(config.session, inputs, places, gather_seconds=GATHER_SECONDS)
        )
        if is_ours and isinstance(replica, ReplicaPool):
            images = SharedLoader(images, replica.memory)
        yield images, composed(replica, inputs.model, inputs.processor.tokenizer), feed


def _count_work(status: ReplicaStatus, stats: RunStats) -> None:
    """What the engine did at its start, or each of several has done."""
    if stats.start is not None:
        stats.start.engine = status.start
    stats.engines = {
        name: {
            "rows": part.answered,
            "prompt_tokens": part.prompt_tokens,
            "completion_tokens": part.generation_tokens,
        }
        for name, part in status.parts
    }


def answer_manifest(
    config: JobConfig,
    inputs: Inputs,
    replica: Replica,
    images: ImageLoader,
    output: Output,
    stats: RunStats,
    stop: StopRequest,
    text_folder: TextFolder | None = None,
    feed: RowFeed | None = None,
) -> None:
    """Stream the manifest's rows through ``replica`` into ``output``, and commit it.

    ``images`` is closed at the end, and so is ``feed``, if it was started before. ``text_folder``
    gets the answers as files.

    Raises:
        RunStoppedError: ``stop`` ended the run; what is done is kept where ``output`` can keep it.
    """
    from vlmbatch.stages.answer_loop import AnswerLoop
    from vlmbatch.stages.sink import ResultSink

    stats.stage = "answering"
    tokenizer = inputs.processor.tokenizer
    memory = HostMemory.divide(config.session.host_memory)
    with stop.on_signals():
        feed = feed or start_feed(config, inputs, images, output)
        spill: Spill[Result] = Spill(memory.results, output.folder, reducers=TIME_REDUCERS)
        writer = output.writer
        if (json_columns := inputs.manifest.json_columns) is not None:
            writer = JsonFieldsWriter(writer, json_columns)
        if config.manifest.keep_inputs and not inputs.streaming:
            writer = InputsWriter(writer, inputs.manifest.kept_inputs())
        texts = None
        if text_folder is not None:
            texts = TextWriter(text_folder)
            writer = ResultTee(writer, texts)
        sink = ResultSink(writer, tokenizer, stats, feed.release, output.journal, spill)
        try:
            try:
                AnswerLoop(feed, replica, sink, stats, stop).run()
            except EnginesLostError as error:  # what was answered before is kept
                stop.request(RunStoppedError(str(error), error.exit_status))
            sink.flush()
            if texts is not None and stop.reason is None:
                texts.finish()
            stopped = stop.reason  # a signal that comes later finds nothing left to stop
            if stopped is None:
                stats.stage = "writing the output"
                assert stats.rows_total in (None, stats.rows_done), (
                    f"{stats.rows_done} of {stats.rows_total} rows were handed on"
                )
                output.commit()
        finally:
            images.close()  # first: the feed would wait for images under way
            feed.close()
            sink.close()
    if stopped is not None:
        raise stopped


def check_free(destination: DurableDestination) -> None:
    """Refuse an output that another run is writing, or whose folder is of a run of another kind.

    Raises:
        OutputLockedError: the message names the process.
        UsageError: it names what is in the folder.
        OutputError: lock or folder cannot be read.
    """
    if isinstance(destination, PartDestination):
        check_folder(destination.folder, destination.part)
    elif isinstance(destination, FolderDestination):
        check_without_parts(destination.path)
    check_unlocked(destination.path)


def open_output(
    config: JobConfig, inputs: Inputs, stats: RunStats, texts: TextFolder | None = None
) -> Output:
    """The output as the manifest's columns and the run's settings shape it.

    ``texts`` is looked at for all rows, before anything is written.
    """
    is_batch = inputs.manifest.format == "openai"
    lines = BatchLines.new(config.session.model) if is_batch else None
    prefix = config.manifest.column_prefix or ""
    asked = asked_columns(config.sampling, config.manifest.parse_json)
    if inputs.streaming:
        return StreamOutput(lines, prefix, asked)
    stats.stage = "reading the manifest"
    info = inputs.manifest.scanned()
    stats.rows_total = info.num_rows
    span = range(info.num_rows)
    destination = config.destination
    if isinstance(destination, PartDestination):
        span = inputs.manifest.select(destination.part)
        stats.first_row, stats.rows_total = span.start, len(span)
    if texts is not None:
        texts.check(inputs.manifest.ids, span, overwrite=config.policy.overwrite)
    if isinstance(destination, StdoutDestination):
        return StreamOutput(lines, prefix, asked)
    wants_batch = isinstance(destination, FileDestination) and is_batch_output(destination.path)
    if wants_batch and info.num_rows and not is_batch:
        raise UsageError(
            f"output {destination}: {config.manifest.source} does not hold OpenAI's batch "
            "requests, and JSONL files are written for these alone: choose a name that ends in "
            ".parquet, a folder, or - for JSONL on standard output"
        )
    settings = run_settings(config, inputs, info)
    quantization = inputs.quantization(config.session.engine)
    rows = inputs.manifest.rows
    return DurableOutput(config, destination, info, rows, settings, span, quantization, stats.pace)
