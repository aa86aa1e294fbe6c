"""The paged pool's memory: how large it may be, and one view of it a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from vlmbatch_kernels.dispatch import has_triton
from vlmbatch_kernels.granules import copy_granules
from vlmbatch_kernels.quantized_rows import E4M3

from vlmbatch.attention import INSTALL_TRITON
from vlmbatch.attention.base import LayerKVCache
from vlmbatch.config import KVCacheDType
from vlmbatch.engine.limits import Limits
from vlmbatch.errors import ConfigError
from vlmbatch.models.config import TextConfig

_DEFAULT_BYTES = 2**30
_E4M3_CAPABILITY = (8, 9)  # Ada: the first GPUs that convert it


def resolve_kv_dtype(name: KVCacheDType, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What keys and values are stored in, of a model that computes in ``dtype``.

    Raises:
        ConfigError: ``device`` is a GPU on which our kernels do not read e4m3.
    """
    if name == "auto":
        return dtype
    if device.type == "cuda":
        _check_reads_e4m3(device)
    return E4M3


def _check_reads_e4m3(device: torch.device) -> None:
    capability = torch.cuda.get_device_capability(device)
    if capability < _E4M3_CAPABILITY:
        need, have = (f"{major}.{minor}" for major, minor in (_E4M3_CAPABILITY, capability))
        raise ConfigError(
            f"--kv-cache-dtype fp8 needs a GPU of capability {need}, this one has {have}; leave "
            "it out"
        )
    if not has_triton():
        raise ConfigError(
            f"--kv-cache-dtype fp8 needs triton on a GPU; try: {INSTALL_TRITON}, or leave it out"
        )


def kv_bytes_per_token(text: TextConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token over all layers."""
    return 2 * text.num_layers * text.num_kv_heads * text.head_dim * dtype.itemsize


def pool_granules(
    kv_cache_tokens: int | None,
    text: TextConfig,
    limits: Limits,
    granule: int,
    dtype: torch.dtype,
) -> int:
    """Granules of ``granule`` tokens that the pool holds: as many as are asked for, else of a GiB.

    Of itself it holds at least one sequence of full length, and no more than steps can use.

    Raises:
        ConfigError: what is asked for is less than a granule.
    """
    if kv_cache_tokens is not None:
        if kv_cache_tokens < granule:
            raise ConfigError(
                f"--kv-cache-tokens must be at least {granule}, got {kv_cache_tokens}"
            )
        return kv_cache_tokens // granule
    allowed = _DEFAULT_BYTES // kv_bytes_per_token(text, dtype) // granule
    return max(min(allowed, useful_granules(limits, granule)), full_length(limits, granule))


def full_length(limits: Limits, granule: int) -> int:
    """Granules of the longest sequence."""
    return -(-limits.max_model_len // granule)


def useful_granules(limits: Limits, granule: int) -> int:
    """Granules of as many of the longest sequences as a step takes, each with a last of its own."""
    return limits.max_num_seqs * full_length(limits, granule)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that a CPU's memory takes no room for before something is written among them."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return (
        torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8))
        .view(dtype)
        .view(shape)
    )


class KVCache:
    """Keys and values of every layer.

    ``layers``: one view of the pool each, (num_tokens + slack, num_kv_heads, head_dim).
    ``spare_slot``: a slot behind the pool's last, for tokens that nobody reads.
    """

    def __init__(
        self,
        text: TextConfig,
        num_tokens: int,
        granule: int,
        slack: int,
        dtype: torch.dtype,
        device: torch.device,
        scales: Sequence[Tensor] | None = None,
    ) -> None:
        """``slack``: tokens behind the last page that a backend may read past its end.

        ``scales``: of each layer's keys and values, where ``dtype`` is e4m3; see ``LayerKVCache``.

        The pool starts as zeros: what lies there is masked, but a NaN would come through the mask.

        Raises:
            ConfigError: the device's memory does not hold it.
        """
        assert num_tokens % granule == 0 and slack % granule == 0 and slack > 0
        shape = (2, text.num_layers, num_tokens + slack, text.num_kv_heads, text.head_dim)
        try:
            pool = _zeros(shape, dtype, device)
        except (MemoryError, RuntimeError, TypeError, ValueError) as error:  # or no such size
            num_bytes = kv_bytes_per_token(text, dtype) * (num_tokens + slack)
            raise ConfigError(
                f"no memory for a KV cache of {num_tokens} tokens, which takes "
                f"{num_bytes / 2**30:,.1f} GiB: lower --kv-cache-tokens"
            ) from error
        assert (scales is not None) == (dtype == E4M3)
        self.layers = [
            LayerKVCache(pool[0, layer], pool[1, layer], None if scales is None else scales[layer])
            for layer in range(text.num_layers)
        ]
        self.spare_slot = num_tokens
        size = granule * text.num_kv_heads * text.head_dim
        # Of e4m3 torch copies no rows by index, but bytes.
        copied = pool if scales is None else pool.view(torch.uint8)
        self._granules = copied.view(2 * text.num_layers, -1, size)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Overwrite granules ``target`` with granules ``source``, both (n,) int64, all apart."""
        copy_granules(self._granules, source, target)
