"""One workload on a loaded engine, through the stages of ``vlmbatch run``, against the clock."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass

import pyarrow.parquet as pq

from vlmbatch.bench.engines import BenchEngines
from vlmbatch.bench.monitor import Monitor
from vlmbatch.bench.workloads import Workload
from vlmbatch.config import FileDestination, JobConfig
from vlmbatch.images.loading.shared_loader import SharedLoader
from vlmbatch.jobs.run import answer_manifest, open_output
from vlmbatch.session.load import start_images
from vlmbatch.session.open import open_job
from vlmbatch.stages.stopping import StopRequest
from vlmbatch.stats import RunStats


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run took. ``seconds``: from opening the manifest to the whole, durable output."""

    rows: int
    errors: int
    first_error: str | None
    seconds: float
    output_tokens: int
    cached_tokens: int
    peak_rss: int
    cpu_share: float
    gpu_share: float | None

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds

    @property
    def output_tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds


def timed_run(config: JobConfig, workload: Workload, engines: BenchEngines) -> Measurement:
    """Answer the manifest of ``config`` and check that every row did the workload's work.

    Raises:
        OutputError: the output cannot be written.
        RunStoppedError: a signal ended it.
    """
    inputs = open_job(config)
    stats = RunStats()
    stop = StopRequest(config.policy.grace_s)
    with closing(
        start_images(config.session, inputs, engines.number, engines.devices[0].index)
    ) as workers:
        workers.wait_ready()  # as they are in a run, where the engine takes longer to load
        images = workers if engines.memory is None else SharedLoader(workers, engines.memory)
        with Monitor(*engines.devices) as monitor:
            started = time.perf_counter()
            with open_output(config, inputs, stats) as output:
                answer_manifest(config, inputs, engines.replica, images, output, stats, stop)
            seconds = time.perf_counter() - started
    answered = stats.rows_done - stats.num_errors
    assert inputs.processor.images is not None
    prompt_tokens = workload.grid(inputs.processor.images).num_tokens + workload.text_tokens
    assert isinstance(config.destination, FileDestination)
    assert pq.read_metadata(config.destination.path).num_rows == stats.rows_done
    assert stats.prompt_tokens == answered * prompt_tokens
    assert stats.completion_tokens == answered * workload.max_tokens
    return Measurement(
        rows=stats.rows_done,
        errors=stats.num_errors,
        first_error=next(map(str, stats.error_examples.values()), None),
        seconds=seconds,
        output_tokens=stats.completion_tokens,
        cached_tokens=stats.cached_tokens,
        peak_rss=monitor.peak_rss,
        cpu_share=monitor.cpu_share,
        gpu_share=monitor.gpu_share,
    )
