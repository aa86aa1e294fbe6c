"""How a run divides the machine's cores between the engine and the processes that decode."""

from __future__ import annotations

import os
from pathlib import Path

# For one engine. Each takes some 40 MB. More are given by hand where images are large and the model
# is small.
_MAX_IMAGE_WORKERS = 32
_CUDA_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/dev/nvgpu", "/dev/nvhost-gpu")


def available_cores() -> int:
    """Cores that this process may use, as affinity and the container's quota (cgroup 2) allow."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except OSError:
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def default_image_workers(engine_on_cpu: bool, num_engines: int = 1) -> int:
    """Processes that decode: nearly all cores for GPUs, few where the engine itself needs them.

    An engine on a GPU takes a core.
    """
    cores = available_cores()
    if engine_on_cpu:
        return max(1, min(cores // 4, _MAX_IMAGE_WORKERS))
    return max(1, min(cores - num_engines, _MAX_IMAGE_WORKERS * num_engines))


def may_have_cuda() -> bool:
    """Whether there is a driver of NVIDIA's, which torch may still be unable to use.

    Quicker than torch, which takes a second to be imported. Besides Linux's own, drivers of WSL and
    of Tegra.
    """
    return any(map(os.path.exists, _CUDA_DRIVERS))


def default_cpu_threads() -> int | None:
    """Threads of an engine on the CPU, one a core that does not decode; None: the user's choice.

    Threads that have to wait for a core hold up all others at the end of every operation.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, available_cores() - default_image_workers(engine_on_cpu=True))
