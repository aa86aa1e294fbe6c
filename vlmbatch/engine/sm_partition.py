"""Two streams that share a GPU by its multiprocessors (CUDA green contexts, driver API 12.4)."""

from __future__ import annotations

import ctypes
import logging
from typing import NamedTuple

import torch
from vlmbatch_kernels.multiprocessors import bind

logger = logging.getLogger(__name__)

_RESOURCE_SM = 1  # CU_DEV_RESOURCE_TYPE_SM
_DEFAULT_STREAM = 1  # CU_GREEN_CTX_DEFAULT_STREAM
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class SMPartition(NamedTuple):
    """``small`` runs on some of the multiprocessors, ``large`` on all others.

    The contexts behind the streams live as long as the process.
    """

    small: torch.cuda.Stream
    large: torch.cuda.Stream


class _Resource(ctypes.Structure):
    """``CUdevResource``, with room for what later versions of the driver append."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("internal", ctypes.c_ubyte * 92),
        ("sm_count", ctypes.c_uint),
        ("rest", ctypes.c_ubyte * 412),
    )


class _DriverError(Exception):
    """A call of the driver failed."""


def partition(device: torch.device, num_sms: int) -> SMPartition | None:
    """Split ``device``, with about ``num_sms`` multiprocessors for the small part.

    None where the driver cannot: older than CUDA 12.4, or the GPU is divided otherwise.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        return _partition(driver, device, num_sms)
    except (OSError, AttributeError, _DriverError) as error:
        logger.debug("the GPU's multiprocessors cannot be divided: %s", error)
        return None


def _partition(driver: ctypes.CDLL, device: torch.device, num_sms: int) -> SMPartition:
    def call(name: str, *arguments: object) -> None:
        if status := getattr(driver, name)(*arguments):
            raise _DriverError(f"{name} returned {status}")

    ordinal = ctypes.c_int()
    index = torch.cuda.current_device() if device.index is None else device.index
    call("cuDeviceGet", ctypes.byref(ordinal), index)
    whole, small, large = _Resource(), _Resource(), _Resource()
    call("cuDeviceGetDevResource", ordinal, ctypes.byref(whole), _RESOURCE_SM)
    groups = ctypes.c_uint(1)
    call(
        "cuDevSmResourceSplitByCount",
        ctypes.byref(small),
        ctypes.byref(groups),
        ctypes.byref(whole),
        ctypes.byref(large),
        0,
        num_sms,
    )

    def stream(resource: _Resource) -> torch.cuda.Stream:
        description, context, raw = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        call("cuDevResourceGenerateDesc", ctypes.byref(description), ctypes.byref(resource), 1)
        call("cuGreenCtxCreate", ctypes.byref(context), description, ordinal, _DEFAULT_STREAM)
        call("cuGreenCtxStreamCreate", ctypes.byref(raw), context, _NON_BLOCKING, 0)
        made = torch.cuda.ExternalStream(raw.value, device)  # type: ignore[no-untyped-call]
        bind(made, resource.sm_count)
        return made

    return SMPartition(stream(small), stream(large))
