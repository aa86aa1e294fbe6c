"""Attention behind one interface: a backend for each way of running it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from vlmbatch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vlmbatch.attention.base import AttentionBackend


def make_backend(name: str, device: str) -> AttentionBackend:
    """Return the attention backend called ``name`` ("auto", "torch" or "flash-attn").

    Raises:
        ConfigError: an unknown name, or a backend that cannot run here.
    """
    if name not in _BACKENDS:
        known = ", ".join(_BACKENDS)
        raise ConfigError(f"unknown attention backend {name!r}; choose one of: {known}")
    return _BACKENDS[name](device)


def _auto(device: str) -> AttentionBackend:
    if device == "cuda" and find_spec("flash_attn") is not None:
        return _flash_attn(device)
    return _torch(device)


def _torch(device: str) -> AttentionBackend:
    from vlmbatch.attention.torch_sdpa import TorchSdpaBackend

    return TorchSdpaBackend()


def _flash_attn(device: str) -> AttentionBackend:
    if not device.startswith("cuda"):
        raise ConfigError(
            f"the flash-attn attention backend needs a CUDA device, not {device!r}; "
            "choose --attention-backend torch"
        )
    if find_spec("flash_attn") is None:
        raise ConfigError(
            "the flash-attn attention backend needs the package flash-attn; install it with: "
            "pip install 'vlmbatch[cuda]', or choose --attention-backend torch"
        )
    from vlmbatch.attention.flash import FlashAttnBackend

    return FlashAttnBackend()


_BACKENDS: dict[str, Callable[[str], AttentionBackend]] = {
    "auto": _auto,
    "torch": _torch,
    "flash-attn": _flash_attn,
}
