"""How busy a GPU is, as its driver's library (NVML) tells; ``nvidia-smi`` shows the same figure."""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import Self

_LIBRARY = "libnvidia-ml.so.1"


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class GpuUsage:
    """Reads the share of time in which kernels ran on a GPU, those of other processes too."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._library: ctypes.CDLL | None = None
        self._handle = ctypes.c_void_p()

    def __enter__(self) -> Self:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError:  # no driver library here: the share stays unknown
            return self
        if library.nvmlInit_v2() != 0:
            return self
        self._library = library
        name = f"GPU-{self._uuid.removeprefix('GPU-')}".encode()
        if library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(self._handle)) != 0:
            self._close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def read(self) -> float | None:
        """Share of the last fraction of a second, 0 to 1; None where it cannot be known."""
        if self._library is None:
            return None
        found = _Utilization()
        failed = self._library.nvmlDeviceGetUtilizationRates(self._handle, ctypes.byref(found))
        return None if failed else found.gpu / 100

    def _close(self) -> None:
        if self._library is not None:
            self._library.nvmlShutdown()
        self._library = None
