"""The paged pool's memory: how large it may be, and one view of it a layer."""

from __future__ import annotations

import torch
from torch import Tensor
from vlmbatch_kernels.granules import copy_granules

from vlmbatch.attention.base import LayerKVCache
from vlmbatch.errors import ConfigError
from vlmbatch.models.config import TextConfig

_CPU_BYTES = 2**30
_CUDA_SHARE = 0.85  # of the free memory; the rest is for activations


def kv_bytes_per_token(text: TextConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token over all layers."""
    return 2 * text.num_layers * text.num_kv_heads * text.head_dim * dtype.itemsize


def pool_granules(
    kv_cache_tokens: int | None,
    text: TextConfig,
    max_model_len: int,
    max_num_seqs: int,
    granule: int,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Granules of ``granule`` tokens that the pool holds: as many as are asked for, else as memory
    allows and batches can use.

    Raises:
        ConfigError: what is asked for is less than a granule, or memory does not allow one
            sequence of the full context length.
    """
    if kv_cache_tokens is not None:
        if kv_cache_tokens < granule:
            raise ConfigError(
                f"--kv-cache-tokens must be at least {granule}, got {kv_cache_tokens}"
            )
        return kv_cache_tokens // granule
    per_token = kv_bytes_per_token(text, dtype)
    if device.type == "cuda":
        allowed = int(torch.cuda.mem_get_info(device)[0] * _CUDA_SHARE) // per_token
        if allowed < max_model_len:
            raise ConfigError(
                f"GPU memory left for the KV cache holds {allowed} tokens, fewer than the context "
                f"length of {max_model_len}; lower it with --max-model-len"
            )
    else:
        allowed = max(_CPU_BYTES // per_token, max_model_len)
    # Every sequence has a last granule of its own.
    longest = -(-max_model_len // granule)
    return max(min(allowed // granule, max_num_seqs * longest), longest)


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
    ) -> None:
        """``slack``: tokens behind the last page that a backend may read past its end.

        The pool starts as zeros: what lies there is masked, but a NaN would come through the mask.
        """
        assert num_tokens % granule == 0 and slack % granule == 0 and slack > 0
        shape = (2, text.num_layers, num_tokens + slack, text.num_kv_heads, text.head_dim)
        pool = torch.zeros(shape, dtype=dtype, device=device)
        self.layers = [
            LayerKVCache(pool[0, layer], pool[1, layer]) for layer in range(text.num_layers)
        ]
        self.spare_slot = num_tokens
        size = granule * text.num_kv_heads * text.head_dim
        self._granules = pool.view(2 * text.num_layers, -1, size)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Overwrite granules ``target`` with granules ``source``, both (n,) int64, all apart."""
        copy_granules(self._granules, source, target)
