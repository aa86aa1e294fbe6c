"""A GPU's context, made by its driver while Python still imports torch.

Either takes a second. CUDA's runtime, and so torch, uses the primary context that it finds.
https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__PRIMARY__CTX.html
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from typing import Any

from vlmbatch.config import EngineConfig
from vlmbatch.log import logger
from vlmbatch.session.cores import may_have_cuda


def make_context_early(config: EngineConfig) -> threading.Thread | None:
    """Begin with the context of the one GPU of this process, on a thread; None: it has not one.

    If it fails, the thread ends and torch will say why: nothing depends on it. Python does not exit
    before the driver is through.
    """
    if config.device == "cpu" or config.tensor_parallel > 1 or not may_have_cuda():
        return None
    if config.gpus != "1" and not (config.gpus in (None, "all") and _has_one_gpu()):
        return None
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # as torch does: kernels as they are used
    thread = threading.Thread(target=_make_context, name="gpu-context")
    thread.start()
    return thread


def _has_one_gpu() -> bool:
    """By the names of devices alone: the driver takes long to count them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return bool(named) and "," not in named
    return len(list(Path("/dev").glob("nvidia[0-9]*"))) == 1


def _make_context() -> None:
    try:
        make_primary_context(ctypes.CDLL("libcuda.so.1"))
    except OSError as error:
        logger.debug("no CUDA driver: %s", error)


def make_primary_context(driver: Any) -> None:
    """Make the primary context of the first visible GPU, with Python's lock released meanwhile."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    for name, arguments in (
        ("cuInit", (0,)),
        ("cuDeviceGet", (ctypes.byref(device), 0)),
        ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), device)),
    ):
        if status := getattr(driver, name)(*arguments):
            logger.debug("%s returned %d", name, status)
            return
