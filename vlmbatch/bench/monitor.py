"""What a run takes from the machine: memory of all its processes, processor and GPU time."""

from __future__ import annotations

import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from vlmbatch.bench.gpu_usage import GpuUsage
from vlmbatch.session.cores import available_cores

_SAMPLE_SECONDS = 0.1
_SAMPLES_A_LOOK = 4  # at memory, which takes the interpreter from what is measured
_PROC = Path("/proc")


class Monitor:
    """Samples this process and its children while the block runs. Read it after the block.

    ``peak_rss``: bytes; pages that processes share count once for each. ``cpu_share``: of the time
    of all cores. ``gpu_share``: of ``devices``, on average; None without a GPU, or where its driver
    does not tell.

    Raises what ended the sampling early, when the block ends without an error of its own.
    """

    def __init__(self, *devices: torch.device) -> None:
        self.peak_rss = 0
        self.cpu_share = 0.0
        self.gpu_share: float | None = None
        self._gpus = [
            GpuUsage(str(torch.cuda.get_device_properties(device).uuid))
            for device in devices
            if device.type == "cuda"
        ]
        self._gpu_samples: list[float] = []
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="monitor")

    def __enter__(self) -> Self:
        self._started = (time.perf_counter(), _cpu_seconds())
        self._watching = self._thread.submit(self._watch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.shutdown()
        wall, cpu = self._started
        available = (time.perf_counter() - wall) * available_cores()
        self.cpu_share = (_cpu_seconds() - cpu) / available
        if self._gpu_samples:
            self.gpu_share = sum(self._gpu_samples) / len(self._gpu_samples)
        if error is None:
            self._watching.result()

    def _watch(self) -> None:
        with ExitStack() as stack:
            self._sample([stack.enter_context(gpu) for gpu in self._gpus])

    def _sample(self, gpus: list[GpuUsage]) -> None:
        for number in count():
            if number % _SAMPLES_A_LOOK == 0:
                self.peak_rss = max(self.peak_rss, resident_bytes())
            ended = self._stop.wait(_SAMPLE_SECONDS)
            shares = (gpu.read() for gpu in gpus)
            self._gpu_samples += [share for share in shares if share is not None]
            if ended:
                return


def resident_bytes() -> int:
    """Resident memory of this process and all below it; its own peak where there is no /proc."""
    if not (_PROC / "self/statm").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    total, queue = 0, [os.getpid()]
    while queue:
        folder = _PROC / str(queue.pop())
        try:
            total += int((folder / "statm").read_bytes().split()[1]) * resource.getpagesize()
            for thread in (folder / "task").iterdir():  # a pattern would take twice as long
                queue += map(int, (thread / "children").read_bytes().split())
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return total


def _cpu_seconds() -> float:
    """Processor time of this process and its ended children, in user and kernel mode."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
