"""Where a GPU idles in a workload of ``bench``, and what the host did meanwhile.

    python tests/gpu/idle_gaps.py qwen3-vl-8b classify 768 '{"quantize": "fp8"}'

Names a built-in config, a workload, its rows, and options of the engine if there are any. Prints
every gap between kernels of 5 ms or more: when, how long, and where the main thread mostly was. The
first is before the first kernel. Then how long the shorter ones are together, and where the main
thread mostly was in these.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from vlmbatch.bench.config import BenchConfig
from vlmbatch.bench.engines import bench_engines
from vlmbatch.bench.setup import make_jobs, open_checkpoint
from vlmbatch.bench.timed_run import timed_run
from vlmbatch.bench.workloads import parse_workloads
from vlmbatch.config import EngineConfig
from vlmbatch.session.open import open_model

LONG_NS, SHORT_NS, SAMPLE_SECONDS, FRAMES = 5_000_000, 20_000, 0.002, 4


class HostSamples:
    """Where the thread that made it is, every two milliseconds."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._samples: list[tuple[int, str]] = []
        self._ended = threading.Event()
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            frame = sys._current_frames().get(self._thread)
            self._samples.append((time.time_ns(), " < ".join(places(frame))))

    def end(self) -> None:
        self._ended.set()

    def between(self, spans: list[tuple[int, int]]) -> Counter[str]:
        """Places in any of these spans of time, ordered ones, in nanoseconds since the epoch."""
        found: Counter[str] = Counter()
        ends = [end for _, end in spans]
        for at, where in self._samples:
            index = bisect_right(ends, at)
            if index < len(spans) and spans[index][0] <= at:
                found[where] += 1
        return found


def places(frame: FrameType | None) -> Iterator[str]:
    """The innermost functions, those of this project first of all."""
    found = 0
    while frame is not None and found < FRAMES:
        code = frame.f_code
        if found == 0 or "vlmbatch" in code.co_filename:
            yield f"{Path(code.co_filename).stem}.{code.co_name}:{frame.f_lineno}"
            found += 1
        frame = frame.f_back


def gaps(profiler: profile, start: int) -> Iterator[tuple[int, int]]:
    """Spans in which no kernel runs, from ``start`` on; nanoseconds since the epoch."""
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = profiler.profiler.kineto_results.events()
    spans = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in events
        if event.device_type() == DeviceType.CUDA
    )
    busy_until = start
    for begin, end in spans:
        if begin - busy_until >= SHORT_NS:
            yield busy_until, begin
        busy_until = max(busy_until, end)


def main(model: str, workload: str, rows: int, options: dict[str, Any]) -> None:
    config = BenchConfig(
        model=model,
        workloads=parse_workloads(workload),
        rows=rows,
        engine=EngineConfig(random_weights=True, **options),
    )
    with TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = open_checkpoint(model, random_weights=True, folder=folder / "checkpoint")
        (job,) = make_jobs(config, checkpoint, folder, "cuda")
        inputs = open_model(job.timed.session)
        with bench_engines(job.timed.session, inputs, (), torch.device("cuda", 0)) as engines:
            timed_run(job.warmup, job.workload, engines)
            samples = HostSamples()
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                start = time.time_ns()
                measured = timed_run(job.timed, job.workload, engines)
            samples.end()
    short, long = [], []
    for begin, until in gaps(profiler, start):
        (long if until - begin >= LONG_NS else short).append((begin, until))
    for begin, until in long:
        print(f"{(begin - start) / 1e9:7.3f} s  {(until - begin) / 1e6:7.1f} ms")
        for where, count in samples.between([(begin, until)]).most_common(2):
            print(f"{count:12d}  {where}")
    print(f"{len(short)} shorter ones")
    for where, count in samples.between(short).most_common(12):
        print(f"{count:12d}  {where}")
    print(
        f"{measured.seconds:.2f} s, {measured.rows_per_second:.1f} rows/s; idle in long gaps for "
        f"{seconds(long)} s, in short ones for {seconds(short)} s"
    )


def seconds(spans: list[tuple[int, int]]) -> str:
    """Of all together."""
    return f"{sum(end - begin for begin, end in spans) / 1e9:.2f}"


if __name__ == "__main__":
    main(*sys.argv[1:3], int(sys.argv[3]), json.loads("".join(sys.argv[4:]) or "{}"))
