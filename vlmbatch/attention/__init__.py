"""Attention behind one interface: a backend for each way of running it."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from vlmbatch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from vlmbatch.attention.base import AttentionBackend

INSTALL_FLASH_ATTN = "pip install --no-build-isolation 'vlmbatch[cuda]'"
REBUILD_FLASH_ATTN = (
    "pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall flash-attn"
)
INSTALL_TRITON = "pip install triton"
_MIN_CAPABILITY = (8, 0)  # Ampere: the first GPUs that compute in bfloat16

logger = logging.getLogger(__name__)


class UnavailableError(Exception):
    """Why a backend cannot run here. ``remedy``: the command that may change it."""

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def make_backend(name: str, device: str, dtype: torch.dtype | None = None) -> AttentionBackend:
    """Return the attention backend called ``name``: "auto", "flash-attn", "triton" or "torch".

    "auto" is the first of the others that can compute in ``dtype`` on ``device`` (None: in any
    type). On a GPU a warning says what a faster one lacks.

    Raises:
        ConfigError: an unknown name, or a backend that cannot run here.
    """
    if name == "auto":
        return _auto(device, dtype)
    if name not in _MAKERS:
        known = ", ".join(("auto", *_MAKERS))
        raise ConfigError(f"unknown attention backend {name!r}; choose one of: {known}")
    try:
        return _MAKERS[name](device, dtype)
    except UnavailableError as error:
        remedy = f"try: {error.remedy}, or " if error.remedy else ""
        raise ConfigError(
            f"--attention-backend {name}: {error.reason}; {remedy}choose --attention-backend auto"
        ) from error


def why_unavailable(name: str, device: str) -> UnavailableError | None:
    """What keeps the backend called ``name`` from running on ``device``."""
    try:
        _MAKERS[name](device, None)
    except UnavailableError as error:
        return error
    return None


def _auto(device: str, dtype: torch.dtype | None) -> AttentionBackend:
    if not device.startswith("cuda"):
        return _torch(device, dtype)
    lacking = []
    for make in (_flash_attn, _triton):
        try:
            backend = make(device, dtype)
            break
        except UnavailableError as error:
            lacking.append(error)
    else:
        backend = _torch(device, dtype)
    remedies = [error.remedy for error in lacking if error.remedy]
    if remedies:
        reasons = " and ".join(error.reason for error in lacking)
        _warn_once(
            f"{reasons}: the slower attention backend {backend.name} is used instead; "
            f"try: {', or: '.join(remedies)}"
        )
    return backend


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _flash_attn(device: str, dtype: torch.dtype | None) -> AttentionBackend:
    _require_cuda(device)
    if find_spec("flash_attn") is None:
        raise UnavailableError("flash-attn is not installed", INSTALL_FLASH_ATTN)
    if dtype is not None and dtype.itemsize != 2:
        raise UnavailableError(f"flash-attn computes in float16 and bfloat16, not in {dtype}")
    try:
        from vlmbatch.attention.flash import FlashAttnBackend
    except ImportError as error:  # built for another torch, or parts of it are missing
        raise UnavailableError(
            f"flash-attn cannot be imported ({_first_line(error)})", REBUILD_FLASH_ATTN
        ) from error
    backend = FlashAttnBackend()
    try:
        backend.try_out(device)
    except RuntimeError as error:
        raise UnavailableError(
            f"flash-attn does not run on this GPU ({_first_line(error)})", REBUILD_FLASH_ATTN
        ) from error
    return backend


def _triton(device: str, dtype: torch.dtype | None) -> AttentionBackend:
    _require_cuda(device)
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            f"triton cannot be imported ({_first_line(error)})", INSTALL_TRITON
        ) from error
    import torch

    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        need, have = (f"{major}.{minor}" for major, minor in (_MIN_CAPABILITY, capability))
        raise UnavailableError(f"triton needs a GPU of capability {need}, this one has {have}")
    from vlmbatch.attention.triton_paged import TritonBackend

    return TritonBackend()


def _torch(device: str, dtype: torch.dtype | None) -> AttentionBackend:
    from vlmbatch.attention.torch_sdpa import TorchSdpaBackend

    return TorchSdpaBackend()


def _require_cuda(device: str) -> None:
    if not device.startswith("cuda"):
        raise UnavailableError(f"it needs a CUDA device, not {device!r}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


_MAKERS: dict[str, Callable[[str, torch.dtype | None], AttentionBackend]] = {
    "flash-attn": _flash_attn,
    "triton": _triton,
    "torch": _torch,
}
